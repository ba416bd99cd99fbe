"""The single step with a flow transformer, its LoRA, and the command that writes the table."""

from pathlib import Path

import pytest
import torch
from helpers import ROOT
from torch import nn

from miniworld import scenes
from miniworld.pretraining.flow import build_flow, with_projection
from miniworld.pretraining.flow_report import card_of
from miniworld.pretraining.model_folder import load_generator, save_flow
from studies import flow
from studies.flow import FlowStep, add_linear_lora, load_transformer

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


def test_a_lora_is_on_every_linear_layer_and_starts_without_effect(mini_flow):
    transformer = load_transformer(mini_flow)
    call = (torch.randn(1, 4, 16, 16), torch.randn(1, 5, 128), torch.randn(1, 128), torch.tensor([400.0]))
    linears = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        before = transformer(*call).sample
        parameters = add_linear_lora(transformer, 3, seed=0)
        assert torch.equal(transformer(*call).sample, before) and before.std() > 0
    assert len(parameters) == 2 * len(linears)
    transformer(*call).sample.square().mean().backward()
    assert all(parameter.grad is not None for parameter in parameters)
    assert any(parameter.grad.abs().max() > 0 for parameter in parameters)


def test_the_single_step_reads_clean_latents_at_its_time(mini_flow):
    transformer, vae = load_transformer(mini_flow), load_generator(MINI_SD)[1]
    states, pooled, z = torch.randn(1, 5, 128), torch.randn(1, 128), torch.randn(2, 4, 16, 16)
    objective = FlowStep(vae, states, 150, pooled)
    with torch.no_grad():
        found = objective.latents(transformer, z)
        scaled = vae.config.scaling_factor * z
        both = torch.tensor([150.0, 150.0])
        assert torch.equal(found, transformer(scaled, states.repeat(2, 1, 1), pooled.repeat(2, 1), both).sample)


def test_weights_are_the_folders_a_snapshots_or_random(mini_flow, tmp_path):
    own = load_transformer(mini_flow)
    snapshot = tmp_path / "ema-000001.pt"
    torch.save({"transformer": {name: weight + 1 for name, weight in own.named_parameters()}}, snapshot)
    weight = own.proj_out.weight
    assert torch.equal(load_transformer(mini_flow, str(snapshot)).proj_out.weight, weight + 1)
    random = [load_transformer(mini_flow, "random", seed).proj_out.weight for seed in (0, 0, 1)]
    assert torch.equal(random[0], random[1]) and not torch.equal(random[0], random[2])
    assert not torch.equal(random[0], weight)


@pytest.mark.slow
def test_the_command_writes_its_table_into_the_card_and_keeps_what_is_done(mini_flow, tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "LABELS", 8)
    monkeypatch.setattr(flow, "TIMES_TRIED", (400,))
    data = tmp_path / "data"
    scenes.main(["--root", str(data), "--train", "8", "--val", "4", "--size", "48x40", "--truth"])
    words = ["--flow", mini_flow, "--base", MINI_SD, "--data", data, "--work", tmp_path / "work", "--steps", 2]
    flow.main([str(word) for word in words])
    card = (mini_flow / "README.md").read_text()
    for title in ("mini-sd, all layers", "mini-flow, s = 0.4", "random weights"):
        assert f"| {title} | " in card
    monkeypatch.setattr(flow, "flow_errors", lambda *args: pytest.fail("trained again"))
    monkeypatch.setattr(flow, "probe", lambda *args: pytest.fail("trained again"))
    flow.main([str(word) for word in words])
    assert (mini_flow / "README.md").read_text() == card
