"""The eight scripts as their users run them: launched, stopped, resumed."""

import json

import pytest
import torch
from helpers import SCRIPTS, distance, fork, launch, lora, losses, records, run_here
from PIL import Image
from safetensors import safe_open

from utils.lora import BIN, CONV_IN, SAFETENSORS

LAUNCHED = "sd_single_diode_pseudo_normal.py"  # by accelerate; the others start in the same way, only faster
GOLDEN = {  # first losses on the seeded world and weights
    "sd_single_diode_pseudo_normal.py": [1.177784, 1.2346, 1.155111, 1.263894],
    "sd_single_diode_pseudo_depth.py": [1.462977, 1.346698, 1.320184, 1.34485],
    "sd_single_diode_pseudo_albedo.py": [1.340835, 1.361081, 1.387946, 1.339239],
    "sd_single_diode_pseudo_shading.py": [1.378359, 1.317579, 1.450042, 1.375788],
    "augunet_diode_pseudo_normal.py": [1.015914, 1.130813, 1.22737, 1.133097],
    "augunet_diode_pseudo_depth.py": [1.029653, 1.136754, 1.122394, 1.127579],
    "augunet_diode_pseudo_albedo.py": [1.087331, 1.191954, 1.093702, 1.066708],
    "augunet_diode_pseudo_shading.py": [1.085868, 1.115946, 1.021415, 1.052901],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Output folder of an uninterrupted run of 4 steps, per script; made on first use."""
    made = {}

    def build(script, flags):
        if script not in made:
            made[script] = tmp_path_factory.mktemp("whole") / "run"
            start = launch if script == LAUNCHED else fork
            start(script, *flags(script, made[script], "--max_train_steps", 4, "--checkpointing_steps", 2))
        return made[script]

    return build


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_and_leaves_what_it_promises(script, flags, whole):
    output = whole(script, flags)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    multi_step = script.startswith("augunet")
    for folder in (output, output / "checkpoint-2", output / "checkpoint-4"):
        assert (folder / SAFETENSORS).is_file() and (folder / CONV_IN).is_file() == multi_step
    from_bin = torch.load(output / BIN, weights_only=True)
    assert all(torch.equal(from_bin[key], value) for key, value in lora(output).items())
    assert any(value.abs().max() > 0 for key, value in lora(output).items() if ".up." in key), "nothing was learned"
    with safe_open(output / SAFETENSORS, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["task"] == SCRIPTS[script] and metadata["steps"] == "4" and metadata["resolution"] == "32"
    assert metadata["method"] == ("augunet" if multi_step else "single-step")

    log = records(output)
    assert sorted(losses(output)) == [1, 2, 3, 4]
    assert all(record["grad_norm"] > 0 and record["lr"] == 1e-4 for record in log if "train_loss" in record)
    headline = {"normal": "mean", "depth": "abs_rel"}.get(SCRIPTS[script], "rmse")
    validated = {r["step"]: r for r in log if f"val/indoors/{headline}" in r}
    assert sorted(validated) == [0, 4]
    assert {f"val/{split}/{headline}" for split in ("train", "indoors", "outdoor")} <= set(validated[4])
    panels = sorted(path.name for path in (output / "validation").iterdir())
    assert panels == [f"{step:06d}_{split}.png" for step in (0, 4) for split in ("indoors", "outdoor", "train")]
    rows = 4 if script == LAUNCHED else 2  # forks validate fewer images
    assert Image.open(output / "validation" / panels[0]).size == (4 * 32, 16 + rows * 32)  # 4 columns, a caption


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_losses_are_the_recorded_ones(script, flags, whole):
    """Any change to data, noise, scaling, timestep or order of samples shows here."""
    measured = losses(whole(script, flags))
    assert [measured[step] for step in (1, 2, 3, 4)] == pytest.approx(GOLDEN[script], rel=1e-3)


@pytest.mark.parametrize("script", SCRIPTS)
def test_resuming_equals_never_stopping(script, flags, whole, tmp_path):
    output = tmp_path / "run"
    words = flags(script, output, "--max_train_steps", 2, "--checkpointing_steps", 2)
    run_here(script, words)
    words[words.index("--max_train_steps") + 1] = "4"
    done = fork(script, *words, "--resume_from_checkpoint", "latest")
    assert "resuming from" in done.stdout and "at step 2" in done.stdout
    assert distance(output, whole(script, flags)) == 0
    assert losses(output) == losses(whole(script, flags))
    steps = [record["step"] for record in records(output)]
    assert steps == sorted(steps)


def test_every_line_of_the_metrics_file_is_json_with_a_step(flags, whole):
    text = (whole("sd_single_diode_pseudo_depth.py", flags) / "metrics.jsonl").read_text()
    assert all(isinstance(json.loads(line)["step"], int) for line in text.splitlines())
