"""What a run trains and how far it is: LoRA, optimiser, schedule and step."""

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import nn

from utils.errors import InputError
from utils.lora import lora_parameters
from utils.system import environment
from utils.system.wrappers import unwrap
from utils.training import checkpoint
from utils.training.averages import Averages
from utils.training.nonfinite import Skipped
from utils.training.settings import OptimizerSettings, RunSettings, Settings

PRECISION_CURE = "set by accelerate, not by a flag; pass --mixed_precision to continue with the one that you want"
PART_OF_A_RUN = ("task", "method", "base_model", "rank", "prompt", "resolution")  # and the seed, the data, ...


class TrainingState:
    """Steps are optimiser steps; `seen` counts samples. `network` is as accelerate wraps it, and may only be called;
    `bare_network` is the same network as it came.

    images: how many the training set has, from which the steps of an epoch follow.
    """

    def __init__(self, settings: Settings, accelerator: Accelerator, network: nn.Module, images: int):
        run = settings.run
        self.accelerator, self.output_dir, self.typed = accelerator, run.output_dir, run.typed
        self.step = self.seen = 0
        self.step_samples = run.train_batch_size * run.gradient_accumulation_steps * accelerator.num_processes
        self.max_steps = length_of(run, images, self.step_samples)
        self.parameters = lora_parameters(network)
        fused = accelerator.scaler is None  # not with a gradient scaler, whose skipped updates would not be seen
        optimizer = make_optimizer(settings.optimizer, self.parameters, self.step_samples, fused)
        self.schedule = make_schedule(settings.optimizer, optimizer, self.max_steps)
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        self.bare_network = unwrap(self.network)
        self.averages = Averages(self.parameters, run.ema_decay)
        self.skipped = Skipped(run.max_nonfinite)
        self.stateful: dict[str, checkpoint.Stateful] = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "skipped": self.skipped,
        }
        if run.ema_decay:
            self.stateful["averages"] = self.averages
        if accelerator.scaler is not None:
            self.stateful["scaler"] = accelerator.scaler

    def load(self, source: Path, shared: dict[str, object], force: bool) -> None:
        """Go on from the checkpoint `source`; `shared`: see `shared_settings`. InputError: another experiment's."""
        base_lrs = self.schedule.base_lrs
        fixed = {} if "mixed_precision" in self.typed else {"mixed_precision": PRECISION_CURE}
        self.step, self.seen = checkpoint.load(source, self.bare_network, self.stateful, shared, force, fixed)
        for group, lr, factor in zip(self.optimizer.param_groups, base_lrs, self.schedule.lr_lambdas):
            group["lr"] = lr * factor(self.schedule.last_epoch)  # this run's flag, not the checkpoint's
        self.schedule.base_lrs = base_lrs

    def save(
        self, shared: dict[str, object], metadata: dict[str, object], limit: int | None, spare: str | None
    ) -> Path | None:
        """`checkpoint-<step>`, by the main process; None where it could not be written. See `checkpoint.save`."""
        written, place = None, (self.output_dir, self.step, self.seen)
        if self.accelerator.is_main_process:
            with self.averages.applied():
                written = checkpoint.save(*place, self.bare_network, self.stateful, shared, metadata, limit, spare)
        self.accelerator.wait_for_everyone()
        return written

    @property
    def counts(self) -> dict[str, int]:
        """Parameters of the LoRA and of the network with it, and the run's length."""
        everything = sum(p.numel() for p in self.bare_network.parameters())
        counts = {"lora_parameters": sum(p.numel() for p in self.parameters), "all_parameters": everything}
        return counts | {"images_per_step": self.step_samples, "total_steps": self.max_steps}


def shared_settings(
    settings: Settings, metadata: dict[str, object], step_samples: int, accelerator: Accelerator, training_data: str
) -> dict[str, object]:
    """What a checkpoint keeps of its run, and what a resumed run is compared with (`checkpoint.load`)."""
    flags = asdict(settings.run) | asdict(settings.optimizer)
    shared = {key: metadata[key] for key in PART_OF_A_RUN}
    shared |= {"timestep": metadata.get("timestep"), "seed": settings.run.seed}
    shared |= {"lora_targets": settings.run.lora_targets, "masked_loss": metadata.get("masked_loss", False)}
    shared |= {"depth_coding": metadata.get("depth_coding", "linear"), "crop": metadata.get("crop", "square")}
    shared |= {name: metadata[name] for name in ("positions", "decoding") if name in metadata}
    shared["ema_decay"] = settings.run.ema_decay
    shared |= {"images per step": step_samples, "training data": training_data}
    shared |= {name: flags[name] for name in checkpoint.FREE}
    return shared | circumstances(settings.run, accelerator)


def circumstances(run: RunSettings, accelerator: Accelerator) -> dict[str, object]:
    """Settings of the computation that are in use, from a flag or from outside. A change shows in the last bits or,
    with the precision, in more.
    """
    device = accelerator.device.type
    tf32 = f"allow_tf32 {run.allow_tf32}, NVIDIA_TF32_OVERRIDE {environment.tf32_variable() or 'unset'}"
    return {
        "mixed_precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "device": device,
        "compile": run.compile,
        "TF32": "none" if device == "cpu" else tf32,
        "threads": torch.get_num_threads() if device == "cpu" else 0,
    }


def length_of(run: RunSettings, images: int, step_samples: int) -> int:
    """The run's optimiser steps: as flagged, or those of so many epochs over `images`."""
    if run.max_train_steps is not None:
        return run.max_train_steps
    if run.num_train_epochs is None:
        raise InputError("no length: pass --max_train_steps or --num_train_epochs")
    return math.ceil(run.num_train_epochs * images / step_samples)


def make_optimizer(
    settings: OptimizerSettings, parameters: list[nn.Parameter], step_samples: int, fused: bool
) -> torch.optim.Optimizer:
    """AdamW as flagged; --scale_lr multiplies the learning rate by the number of images in a step."""
    kind: Callable[..., torch.optim.Optimizer] = partial(torch.optim.AdamW, fused=fused)
    if settings.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise InputError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from None
        kind = AdamW8bit
    return kind(
        parameters,
        lr=settings.learning_rate * (step_samples if settings.scale_lr else 1),
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        eps=settings.adam_epsilon,
    )


def make_schedule(settings: OptimizerSettings, optimizer: torch.optim.Optimizer, max_steps: int):
    """The learning rate's course; a warm-up also with "constant", which diffusers would ignore without a word."""
    warm = settings.lr_scheduler == "constant" and settings.lr_warmup_steps
    kind = "constant_with_warmup" if warm else settings.lr_scheduler
    return get_scheduler(kind, optimizer, num_warmup_steps=settings.lr_warmup_steps, num_training_steps=max_steps)
