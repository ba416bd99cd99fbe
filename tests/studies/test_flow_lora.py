"""LoRAs on the flow transformer: the weights that are probed, and the parts of them that train."""

from pathlib import Path

import pytest
import torch
from helpers import ROOT
from torch import nn

from miniworld.pretraining.flow import build_flow, with_projection
from miniworld.pretraining.flow_report import card_of
from miniworld.pretraining.model_folder import load_generator, save_flow
from studies.probe import Setting, make_unet, place_lora
from utils.base_model.families import open_base

MINI_SD = ROOT / "miniworld" / "mini-sd"


@pytest.fixture(scope="module")
def mini_flow(tmp_path_factory) -> Path:
    """A tiny random flow transformer on mini-sd."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("flow") / "mini-flow"
    parts, vae = load_generator(MINI_SD)
    transformer = build_flow(64, 16, width=16, layers=2, heads=2)
    for weight in transformer.parameters():
        nn.init.normal_(weight, std=0.1)
    save_flow(out, MINI_SD, transformer, with_projection(parts.text_encoder), parts, vae)
    (out / "README.md").write_text(card_of(out, MINI_SD, transformer))
    return out


def test_a_lora_on_all_layers_is_on_every_linear_one(mini_flow):
    transformer = make_unet(open_base(str(mini_flow)), Setting(base="flow"))
    linears = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    assert len(place_lora(transformer, Setting(targets="all"))) == 2 * len(linears)


def test_weights_are_the_folders_a_snapshots_or_random(mini_flow, tmp_path):
    base = open_base(str(mini_flow))
    snapshot = tmp_path / "ema-000001.pt"
    torch.save({"transformer": {name: weight + 1 for name, weight in base.network.named_parameters()}}, snapshot)
    weight = base.network.proj_out.weight

    def probed(unet: str, seed: int = 0) -> torch.Tensor:
        return make_unet(base, Setting(unet=unet, seed=seed)).proj_out.weight

    assert torch.equal(probed("pretrained"), weight) and torch.equal(probed(str(snapshot)), weight + 1)
    assert torch.equal(probed("random"), probed("random")) and not torch.equal(probed("random"), probed("random", 1))
    assert not torch.equal(probed("random"), weight)
