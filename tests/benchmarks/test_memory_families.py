"""Memory of the newer families, counted: with tiny networks of the real classes, and the table in the README."""

import pytest
import torch
from helpers import ROOT

from benchmarks import families, memory, train_step

VAE = {
    "block_out_channels": (16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
NETWORK = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": (4, 4, 4, 4),
    "guidance_embeds": False,
}


@pytest.fixture
def klein(monkeypatch):
    """The name of a tiny klein, in the place of the one of 4 B parameters."""
    tiny = families.FullSize(families.Flux2, NETWORK, VAE, 8, 48)
    monkeypatch.setitem(families.FULL_SIZE, "flux2", tiny)
    return "flux2"


def test_a_familys_memory_is_its_weights_and_its_activations(klein):
    found = memory.count_family(klein, resolution=64)
    plain, checkpointed = found["plain"], found["checkpointing"]
    weights = 2 * found["network"] + 3 * 4 * found["lora"]  # bf16; fp32 and AdamW's two moments
    for count in (plain, checkpointed):
        assert weights <= 1e9 * count["resident_gb"] < 1.3 * weights  # in blocks of 512 bytes
        assert count["peak_gb"] >= count["resident_gb"] + count["saved_gb"]
    assert 0 < checkpointed["saved_gb"] < 0.8 * plain["saved_gb"]
    assert 1e9 * found["predicting"]["peak_gb"] > 2 * (found["network"] + found["vae"])


def test_a_step_of_a_family_trains(klein):
    """What is counted is a step that runs: on the CPU its loss falls."""
    words = ["--base", klein, "--resolution", "32", "--dtype", "bf16", "--gradient_checkpointing"]
    step = train_step.our_step(train_step.parser().parse_args([*words, "--peak", "ours"]), "cpu")
    losses = [step() for _ in range(5)]
    assert torch.tensor(losses).isfinite().all() and losses[-1] < losses[0]


@pytest.mark.parametrize("more", [[], ["--peak", "released"], ["--peak", "ours", "--method", "augunet"]])
def test_what_a_family_cannot_do_is_refused(more):
    with pytest.raises(Exception, match="--base=sdxl: only our single step can train it; pass --peak ours"):
        train_step.compare(train_step.parser(), "benchmarks.train_step", train_step.MAKERS, ["--base", "sdxl", *more])


def test_the_readme_has_the_table_of_families(capsys):
    memory.main(["--families"])
    assert capsys.readouterr().out.strip() in (ROOT / "benchmarks" / "README.md").read_text()
