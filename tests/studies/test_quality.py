"""Snapshots of a pretraining as generators, and the section on error against sample quality."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from generators.stylegan2 import load_gan
from generators.transformer import load_autoregressive
from miniworld.pretraining.gan import build_gan
from studies.quality import of_diffusion, section, snapshots
from utils.errors import InputError

WHOLE = Path("miniworld/mini-gan"), Path("miniworld/mini-ar")


def row(step: int, distance: float, error: float) -> dict:
    return {"step": step, "distance": distance, "errors": {"trained": [[error] * 4] * 2, "mean": [[2.0] * 4]}}


def test_a_gans_snapshot_draws_with_its_own_weights_and_only_powers_of_two_are_taken(tmp_path):
    torch.manual_seed(3)
    network, _ = build_gan()
    state = {"generator": {name: value.detach().half().float() for name, value in network.named_parameters()}}
    for step in (64, 91):
        torch.save(state, tmp_path / f"ema-{step:06d}.pt")
    made = snapshots("gan", tmp_path, WHOLE[0], tmp_path / "made")
    assert list(made) == [64]
    for name, value in network.named_parameters():
        value.data = state["generator"][name]
    w = network.mapping(torch.randn(2, 128))
    drawn = load_gan(str(made[64])).network(w)
    assert torch.allclose(drawn, network(w), atol=1e-5) and drawn.std() > 0.01
    assert not torch.allclose(drawn, load_gan(str(WHOLE[0])).network(w), atol=0.1)


def test_a_transformers_snapshot_has_its_weights_and_the_whole_models_tokens(tmp_path):
    whole = LlamaForCausalLM.from_pretrained(WHOLE[1] / "transformer").float()
    state = {name: value.detach() + 0.01 for name, value in whole.named_parameters()}
    torch.save({"transformer": state}, tmp_path / "ema-000128.pt")
    folder = snapshots("ar", tmp_path, WHOLE[1], tmp_path)[128]
    assert (folder / "recommended_settings.json").is_file(), "a training has to find the resolution"
    made = load_autoregressive(str(folder))
    shipped = load_autoregressive(str(WHOLE[1]))
    for name, value in made.network.language_model.named_parameters():
        assert torch.allclose(value, state[f"model.{name}"])
    rgb = torch.rand(2, 3, 64, 64) * 2 - 1
    assert torch.equal(made.tokens.encode(rgb), shipped.tokens.encode(rgb))


def test_a_folder_without_snapshots_is_refused(tmp_path):
    with pytest.raises(InputError, match="pretrain_gan keeps them"):
        snapshots("gan", tmp_path, WHOLE[0], tmp_path)


def test_what_falls_with_the_distance_has_rank_correlation_one(tmp_path):
    rows = [row(64, 200, 2.4), row(128, 100, 1.5), row(256, 50, 1.0)]
    text = section({"gan": rows}, tmp_path)
    assert "**1.00 [1.00, 1.00]**" in text and "| 64 | 200.0 | 2.4 [2.4, 2.4] | 1.20 [1.20, 1.20] | 2 |" in text
    assert (tmp_path / "generators_4.png").stat().st_size > 1000
    rows = [row(64, 50, 2.4), row(128, 100, 1.5), row(256, 200, 1.0)]
    assert "**-1.00 [-1.00, -1.00]**" in section({"ar": rows}, tmp_path)


def test_diffusions_snapshots_are_those_of_its_own_study(tmp_path):
    path, mean = tmp_path / "paper_questions.json", np.ones((1, 2))
    assert of_diffusion(path, mean, "4") == []
    results = [
        {"setting": {"unet": f"ema-{step:06d}"}, "distance": 300 - step, "errors": [step, None]}
        for step in (128, 64)
        for _ in range(3)
    ]
    path.write_text(json.dumps({"answers": {"4": results, "7-snapshots": results[:3]}}))
    assert [one["step"] for one in of_diffusion(path, mean, "7-snapshots")] == [128]
    rows = of_diffusion(path, mean, "4")
    assert [(one["step"], one["distance"], len(one["errors"]["trained"])) for one in rows] == [
        (64, 236, 3),
        (128, 172, 3),
    ]
    assert np.isnan(np.array(rows[0]["errors"]["trained"], float)[0, 1])
