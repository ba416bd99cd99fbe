"""Memory and time do not creep: ratios to the model's size and to a matrix product of the same run, never seconds."""

import json
from pathlib import Path
from statistics import median

import pytest
from diffusers import UNet2DConditionModel
from helpers import ROOT, fork

from miniworld.pretraining.random_sd import TEXT_WIDTH, save_random_sd

MINI = ROOT / "miniworld" / "mini-sd"
PEAK = """
import importlib, json, sys
from pathlib import Path
import utils.evaluation.run, utils.inference.predictor, utils.inference.run
main = importlib.import_module({0!r}).main

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
main(sys.argv[1:])
print(json.dumps({{"peak": status("VmHWM") - before}}))
"""
STEPS, EVERY = 3000, 150
LONG = """
import gc, json, os, sys, threading, time
from pathlib import Path
import torch
import sd_single_diode_pseudo_normal as script
from utils.training import loop

original, a, product, began = loop.tracking.log_scalars, torch.rand(256, 256), 0.0, 0.0

def log_scalars(accelerator, output_dir, values, step, complete):
    global began, product
    original(accelerator, output_dir, values, step, complete)
    if "train_loss" not in values or step % {0}:
        return
    now = time.process_time()
    gc.collect()
    if step == {0}:
        gc.freeze()  # what the imports made needs no second look
    times = []
    for _ in range(20):
        start = time.process_time()
        a @ a
        times.append(time.process_time() - start)
    lines = Path("/proc/self/status").read_text().splitlines()
    print(json.dumps({{
        "step": step, "seconds": (now - began) / {0}, "product": min(times),
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": int(next(line for line in lines if line.startswith("Threads")).split()[1]),
        "memory": 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1]),
        "objects": len(gc.get_objects()),
    }}), flush=True)
    began = time.process_time()

loop.tracking.log_scalars = log_scalars
script.main(sys.argv[1:])
"""


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def size_of_model() -> int:
    return sum(path.stat().st_size for path in MINI.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def maps(diode, tmp_path_factory):
    """Predictions of mini-sd's normals for the validation images, to be scored."""
    out = tmp_path_factory.mktemp("maps")
    fork("inference_sd_single.py", "--lora", ROOT / "miniworld/mini-loras/normal", "--input_dir", diode / "depths/val",
         "--output_dir", out, "--device", "cpu", "--npy")  # fmt: skip
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "limit"), [("training", 18), ("validation", 18), ("inference", 9), ("evaluation", 9)]
)
def test_the_peak_of_memory_against_the_models_size(what, limit, diode, maps, tmp_path):
    """Above what the first imports take. Most of it are libraries that a run imports late, so one more copy of this
    small model stays below the limit; several, or all images in memory at full size, do not.
    """
    script, words = "sd_single_diode_pseudo_normal", [
        "--pretrained_model_name_or_path", MINI, "--train_data_dir", diode / "normals", "--pseudo_root",
        diode / "pseudo/normal", "--output_dir", tmp_path, "--resolution", 64, "--train_batch_size", 2,
        "--report_to", "none", "--max_train_steps", 4, "--validation_steps", 4 if what == "validation" else 0,
    ]  # fmt: skip
    if what == "inference":
        script, words = "inference_sd_single", [
            "--lora", ROOT / "miniworld/mini-loras/normal", "--input_dir", diode / "depths/val", "--output_dir",
            tmp_path, "--device", "cpu", "--npy",
        ]  # fmt: skip
    if what == "evaluation":
        script, words = "evaluate", [
            "--task", "normal", "--pred_dir", maps / "normal/predicted", "--gt_dir", diode / "normals/val",
            "--output", tmp_path / "metrics.json",
        ]  # fmt: skip
    (found,) = lines(fork("-c", PEAK.format(script), *words).stdout)
    assert found["peak"] < limit * size_of_model(), f"{found['peak'] / size_of_model():.1f} times the model"


def save_smallest(folder: Path) -> None:
    """A random Stable Diffusion whose UNet has one level and one transformer, for short steps."""
    save_random_sd(folder, channels=(32, 32, 32))
    unet = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None,
        block_out_channels=(32,), layers_per_block=1, cross_attention_dim=TEXT_WIDTH, attention_head_dim=4,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")


@pytest.mark.slow
def test_three_thousand_steps_take_no_more_memory_handles_threads_or_time(diode, tmp_path):
    save_smallest(tmp_path / "sd")
    words = ["--pretrained_model_name_or_path", tmp_path / "sd", "--train_data_dir", diode / "normals"]
    words += ["--pseudo_root", diode / "pseudo/normal", "--output_dir", tmp_path / "run", "--resolution", 32]
    words += ["--train_batch_size", 1, "--rank", 1, "--report_to", "none", "--max_train_steps", STEPS]
    words += ["--validation_steps", 500, "--no_first_validation", "--checkpointing_steps", 250]
    words += ["--checkpoints_total_limit", 1]
    found = lines(fork("-c", LONG.format(EVERY), *words).stdout)
    half = len(found) // 2
    early, late = found[half // 2 : half], found[-half // 2 :]
    for name, most in {"handles": 0, "threads": 0, "objects": 200, "memory": 2e6}.items():
        grown = median(one[name] for one in late) - median(one[name] for one in early)
        assert grown <= most, f"{name}: {grown} more after {STEPS} steps"
    assert median(one["seconds"] for one in late) < 1.5 * median(one["seconds"] for one in early)
    assert median(one["seconds"] / one["product"] for one in found) < 150, "a step, in products of 256 x 256"
