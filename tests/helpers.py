"""What several tests use: the project's root, its scripts, ways to run them, and readers of what a run wrote."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from utils.lora import SAFETENSORS

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "sd_single_diode_pseudo_normal.py": "normal",
    "sd_single_diode_pseudo_depth.py": "depth",
    "sd_single_diode_pseudo_albedo.py": "albedo",
    "sd_single_diode_pseudo_shading.py": "shading",
    "augunet_diode_pseudo_normal.py": "normal",
    "augunet_diode_pseudo_depth.py": "depth",
    "augunet_diode_pseudo_albedo.py": "albedo",
    "augunet_diode_pseudo_shading.py": "shading",
}


def python(*words: object, env: dict | None = None, check: bool = True) -> subprocess.CompletedProcess:
    """Run Python in the project's root; with `check`, a failure shows the output. `env`: None removes a variable."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={key: value for key, value in {**os.environ, **(env or {})}.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def launch(
    script: str, *words: object, processes: int = 1, more: tuple[str, ...] = (), **kwargs
) -> subprocess.CompletedProcess:
    """`accelerate launch` on the CPU; `more`: options of the launcher."""
    options = ["--num_processes", processes, "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    options += more
    return python("-m", "accelerate.commands.launch", *options, ROOT / script, *words, **kwargs)


def run_here(script: str, words: list[str]) -> None:
    """A script's main in this process: quicker than launching, where the launcher does not matter."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    importlib.import_module(script.removesuffix(".py")).main(words)


def lora(folder: Path) -> dict[str, torch.Tensor]:
    """The LoRA in a run's output folder."""
    return load_file(folder / SAFETENSORS)


def distance(a: Path, b: Path) -> float:
    """Largest difference between the LoRA weights of two runs."""
    first, second = lora(a), lora(b)
    return max((first[key] - second[key]).abs().max().item() for key in first | second)


def records(output: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> dict[int, float]:
    """step -> training loss of a run."""
    return {record["step"]: record["train_loss"] for record in records(output) if "train_loss" in record}


def random_lora(unet, seed: int = 0, rank: int = 4) -> dict[str, torch.Tensor]:
    """A random LoRA for every attention layer in format A, both halves non-zero."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name in unet.attn_processors:
        layer = unet.get_submodule(name.removesuffix(".processor"))
        for target, linear in (
            ("to_q", layer.to_q),
            ("to_k", layer.to_k),
            ("to_v", layer.to_v),
            ("to_out", layer.to_out[0]),
        ):
            down = torch.randn(rank, linear.in_features, generator=generator) / rank
            up = torch.randn(linear.out_features, rank, generator=generator) / 10
            state |= {f"{name}.{target}_lora.down.weight": down, f"{name}.{target}_lora.up.weight": up}
    return state
