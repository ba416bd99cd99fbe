"""What a training run says of itself: the header of its files, its first line, and its last ones."""

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator

from utils import __version__
from utils.inference.job import BASES, SCRIPTS
from utils.models import Frozen
from utils.objectives import Objective
from utils.system import environment
from utils.training.settings import RunSettings, Settings
from utils.training.state import TrainingState
from utils.training.training_set import TrainingSet


def describe(objective: Objective, base: Frozen, train_set: TrainingSet, run: RunSettings) -> dict[str, object]:
    """The header of the run's LoRA files, but for the steps: what they were trained for, on what, and with what."""
    key, meaning = train_set.intrinsic.convention
    return {
        "format_version": 1,
        "task": train_set.intrinsic.name,
        "base_model": base.name,
        "revision": base.revision,
        **objective.metadata,
        key: meaning,
        "validated_against": train_set.reference,
        "rank": run.rank,
        "prompt": run.prompt,
        "resolution": train_set.resolution,
        "project_version": __version__,
        **({"masked_loss": True} if train_set.masked else {}),
        **({"crop": "none"} if train_set.whole else {}),
        **({"ema_decay": run.ema_decay} if run.ema_decay else {}),
        **({"depth_coding": coding} if (coding := train_set.intrinsic.depth_coding) != "linear" else {}),
    }


def summary(state: TrainingState, run: RunSettings, accelerator: Accelerator, images: int, dtype: torch.dtype) -> str:
    """One line: data, length, LoRA, and the settings that may also come from outside the flags, as they are in use."""
    outside = run.mixed_precision is None and accelerator.mixed_precision != "no"
    set_by = f" (set by {environment.origin(environment.PRECISION)})" if outside else ""
    lora, everything = state.counts["lora_parameters"], state.counts["all_parameters"]
    return (
        f"{images} training images, {state.step_samples} a step, {state.max_steps} steps; LoRA of rank {run.rank}: "
        f"{lora:,} parameters, {100 * lora / everything:.2f} % of the network; {accelerator.device}, "
        f"{accelerator.num_processes} process(es), frozen parts in {dtype}; "
        f"mixed precision {accelerator.mixed_precision}{set_by}, "
        f"{accelerator.gradient_accumulation_steps} micro-step(s) a step, "
        f"{'compiled' if run.compile else 'not compiled'}, TF32 {'on' if run.allow_tf32 else 'off'}"
    )


def has_bin(metadata: Mapping[str, object]) -> bool:
    """Whether the run also writes a .bin, for the paper's line. It has no header: nobody who reads it could know of a
    coding that must be undone, or of another network than a UNet.
    """
    return "depth_coding" not in metadata and metadata["method"] in BASES


def outcome(output_dir: Path, metadata: Mapping[str, object], settings: Settings) -> str:
    """Where everything lies, and what to do next."""
    method = str(metadata["method"])
    files = " and .bin" if has_bin(metadata) else ""
    files += ", metrics.jsonl" + (", validation/, best.json" if settings.run.validation_steps else "")
    images = " --input_dir path/to/images" if method in BASES else ""
    ask = f"python {SCRIPTS[method]} --lora {output_dir}{images} --output_dir output"
    lines = [f"{output_dir}: pytorch_lora_weights.safetensors{files}", f"next: {ask}"]
    if "tensorboard" in settings.tracking.trackers:
        lines.append(f"      tensorboard --logdir {output_dir / settings.tracking.logging_dir}")
    return "\n".join(lines)
