"""Variants of the recipe: each is what its name promises, and the command writes its table."""

import shutil
from dataclasses import replace

import pytest
import torch
from helpers import ROOT

from miniworld import scenes
from studies import tried
from studies.probe import Recipe, Setting, make_unet
from studies.tried import DECAYS, Bench, Residual, begun, trained, with_averages
from utils.base_model.stable_diffusion import load_base
from utils.objectives import SingleStep

SETTING = Setting(labels=8, rank=2, targets="all", timestep=400)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    scenes.main(["--root", str(root), "--train", "8", "--val", "4", "--size", "48x40", "--truth"])
    base = load_base(str(ROOT / "miniworld" / "mini-sd"))
    return Bench(base, root, tmp_path_factory.mktemp("work"), Recipe(3, 2, "no", 32))


def test_a_residual_plus_the_networks_output_is_the_images_latents(bench):
    base, z = bench.base, torch.randn(2, 4, 8, 8)
    both = [kind(base, base.encode_prompt("surface normal"), 400) for kind in (Residual, SingleStep)]
    with torch.no_grad():
        residual, plain = (one.latents(base.unet, z) for one in both)
        batch = {"rgb": torch.rand(2, 3, 32, 32) * 2 - 1, "target": torch.rand(2, 3, 32, 32) * 2 - 1}
        noise = [[torch.Generator().manual_seed(5) for _ in range(2)] for _ in both]
        losses = [one.loss(base.unet, batch, each) for one, each in zip(both, noise)]
    assert torch.allclose(residual + plain, base.vae.config.scaling_factor * z, atol=1e-5)
    assert not torch.isclose(*losses)


def test_averages_stand_still_where_the_weights_do_and_lag_behind_where_they_move(bench):
    still = with_averages(bench, SETTING, lambda share: 0.0)
    assert all(still[f" {decay}"] == still[""] for decay in DECAYS)
    moving = with_averages(bench, SETTING, lambda share: 1.0)
    assert moving[""] != still[""] and len({tuple(each) for each in moving.values()}) == 2  # short runs: one memory
    assert moving[""] == pytest.approx(with_averages(bench, SETTING, lambda share: 1.0)[""])


def test_a_training_that_begins_at_another_ends_elsewhere(bench):
    alone = trained(bench, SETTING)[""]
    assert begun(bench, SETTING, replace(SETTING, task="depth"))[""] != alone
    assert begun(bench, SETTING, replace(SETTING, task="depth", learning_rate=0.0))[""] == pytest.approx(alone)
    assert make_unet(bench.base, SETTING).conv_in.weight.equal(bench.base.unet.conv_in.weight)  # the base stays


@pytest.mark.slow
def test_the_command_writes_its_table(bench, tmp_path, capsys):
    shutil.copy(ROOT / "studies" / "results" / "tried.md", tmp_path)
    words = [
        "--data",
        bench.data,
        "--work",
        tmp_path / "work",
        "--docs",
        tmp_path,
        "--seeds",
        2,
        "--steps",
        1,
        "--labels",
        8,
    ]
    tried.main([str(word) for word in words])
    page = (tmp_path / "tried.md").read_text()
    said, start, rest = capsys.readouterr().out.partition("| tried |")
    assert (start + rest).strip() in page and page.count("| averaged weights") == 2 * len(DECAYS)
    assert "--mixed_precision" in said and "--mixed_precision" not in rest
    assert "# Variants of the recipe: results" in page
