"""The training scripts and the predictor on a real GPU, against the CPU: `pytest -m gpu`."""

import numpy as np
import pytest
import torch
from helpers import SCRIPTS, distance, fork, losses, records
from PIL import Image

from utils.inference import Predictor

SINGLE, AUGUNET = "sd_single_diode_pseudo_normal.py", "augunet_diode_pseudo_depth.py"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
CPU = {"ACCELERATE_USE_CPU": "true"}
# per precision, how far a loss may be from the CPU's in fp32, relatively: fp32 has TF32 convolutions (10 bits)
TOLERANCE = {"no": 2e-3, "bf16": 3e-2, "fp16": 5e-3}


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("script", [SINGLE, AUGUNET])
@pytest.mark.parametrize("more", [(), ("--lora_targets", "all", "--gradient_checkpointing"), ("--no_cache_latents",)])
def test_losses_are_the_cpus_to_rounding(script, precision, more, flags, tmp_path):
    words = ["--max_train_steps", 4, *more]
    fork(script, *flags(script, tmp_path / "cpu", *words), env=CPU)
    done = fork(script, *flags(script, tmp_path / "gpu", *words, "--mixed_precision", precision))
    assert "cuda" in done.stdout
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=TOLERANCE[precision])


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_trains_and_validates(script, flags, tmp_path):
    fork(
        script, *flags(script, tmp_path, "--max_train_steps", 2, "--validation_steps", 2, "--mixed_precision", "bf16")
    )
    assert any(name.startswith("val/") for line in records(tmp_path) for name in line)


def test_a_resumed_run_is_the_uninterrupted_one(flags, tmp_path):
    """Deterministic kernels are not asked for, so the last bits may differ."""
    words = ["--max_train_steps", 6, "--checkpointing_steps", 3]
    fork(SINGLE, *flags(SINGLE, tmp_path / "whole", *words))
    fork(SINGLE, *flags(SINGLE, tmp_path / "parts", "--max_train_steps", 3, "--checkpointing_steps", 3))
    fork(SINGLE, *flags(SINGLE, tmp_path / "parts", *words, "--resume_from_checkpoint", "latest"))
    assert distance(tmp_path / "whole", tmp_path / "parts") < 1e-6


def test_more_processes_than_gpus_end_in_one_line(flags, tmp_path):
    count = torch.cuda.device_count() + 1
    done = fork(SINGLE, *flags(SINGLE, tmp_path / "run"), processes=count, check=False)
    assert done.returncode == 2 and f"pass --num_processes {count - 1}" in done.stderr


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_maps_are_the_cpus_to_rounding(dtype):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8).repeat(4, 0))
    lora = "miniworld/mini-loras/normal"
    on_cpu, on_gpu = Predictor(lora, device="cpu")(image), Predictor(lora, dtype=dtype)(image)
    cosine = (on_cpu["normal"].values * on_gpu["normal"].values).sum(-1).clip(-1, 1)
    assert np.degrees(np.arccos(cosine)).mean() < {"fp32": 0.2, "fp16": 0.5, "bf16": 3}[dtype]
