"""What a run trains and how far it is: LoRA, optimiser, schedule and step, and the settings that they belong to."""

import argparse
import math
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import Dataset

from utils import __version__
from utils.errors import InputError, note
from utils.lora import lora_parameters
from utils.system.compiling import compile_unet
from utils.tracking import metrics_file
from utils.training import best, checkpoint
from utils.training.nonfinite import Skipped

PART_OF_A_RUN = ("task", "method", "base_model", "rank", "prompt", "resolution")  # and the seed, the data, ...


class TrainingState:
    """Steps are optimiser steps; `seen` counts samples. `unet` is as accelerate wraps it, `bare_unet` as it came."""

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        unet: nn.Module,
        train_set: Dataset,
        metadata: dict[str, object],
    ):
        self.args, self.accelerator, self.output_dir = args, accelerator, Path(args.output_dir)
        self.step = self.seen = 0
        self.step_samples = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
        self.max_steps = args.max_train_steps or math.ceil(args.num_train_epochs * len(train_set) / self.step_samples)
        self.parameters = lora_parameters(unet)
        optimizer = make_optimizer(args, self.parameters, self.step_samples, fused=accelerator.scaler is None)
        # diffusers' "constant" ignores a warm-up without a word
        warm = args.lr_scheduler == "constant" and args.lr_warmup_steps
        kind = "constant_with_warmup" if warm else args.lr_scheduler
        lengths = {"num_warmup_steps": args.lr_warmup_steps, "num_training_steps": self.max_steps}
        self.schedule = get_scheduler(kind, optimizer, **lengths)
        if args.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if args.compile:
            compile_unet(unet, accelerator.device)
        self.unet, self.optimizer = accelerator.prepare(unet, optimizer)
        self.bare_unet = accelerator.unwrap_model(self.unet)
        self.skipped = Skipped(args.max_nonfinite)
        self.stateful = {"optimizer": self.optimizer, "schedule": self.schedule, "skipped": self.skipped}
        if accelerator.scaler is not None:
            self.stateful["scaler"] = accelerator.scaler
        self.metadata = {"format_version": 1, **metadata, "rank": args.rank, "prompt": args.prompt}
        self.metadata |= {"resolution": args.resolution, "project_version": __version__}
        self.settings = {key: self.metadata[key] for key in PART_OF_A_RUN}
        self.settings |= {
            "timestep": metadata.get("timestep"),
            "seed": args.seed,
            "images per step": self.step_samples,
            "training data": train_set.fingerprint,
        }
        self.settings |= {name: getattr(args, name) for name in checkpoint.FREE}
        self.settings |= {"processes": accelerator.num_processes}

    def resume(self) -> tuple[int | None, set[tuple[int, str]]]:
        """Go on from `args.checkpoint`, if there is one, and clear away what an interrupted run left half done.

        Returns the step gone on from (-1: none there yet; None: not asked to), and the (step, scalar) that the
        trackers already have of the steps after it.
        """
        args, source, resumed_at = self.args, self.args.checkpoint, None
        sent: set[tuple[int, str]] = set()
        if source:
            base_lrs = self.schedule.base_lrs
            load = (source, self.bare_unet, self.stateful, self.settings, args.force_resume)
            self.step, self.seen = checkpoint.load(*load)
            for group, lr, factor in zip(self.optimizer.param_groups, base_lrs, self.schedule.lr_lambdas):
                group["lr"] = lr * factor(self.schedule.last_epoch)  # this run's flag, not the checkpoint's
            self.schedule.base_lrs = base_lrs
            note(f"resuming from {source} at step {self.step}")
        elif args.resume_from_checkpoint:
            note(f"no checkpoint in {self.output_dir} yet; starting from step 0")
        if args.resume_from_checkpoint:
            resumed_at = self.step if source else -1
        if self.accelerator.is_main_process:
            checkpoint.clear(self.output_dir)
            if resumed_at is None:
                metrics_file.set_aside(self.output_dir)
            else:
                sent = metrics_file.forget_after(self.output_dir, resumed_at, args.validation_steps)
                best.mark_best(self.output_dir, args.best_metric)  # a metric that is not there ends the run here
        return resumed_at, sent

    def update(self, usable: bool) -> None:
        """One optimiser step, if loss and gradient are `usable`, and the learning rate of the next."""
        if usable or self.accelerator.scaler is not None:  # a scaler skips by itself, and must hear of it
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.step, self.seen = self.step + 1, self.seen + self.step_samples
        if usable and not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()

    def save(self) -> Path | None:
        """`checkpoint-<step>`, by the main process; None where it could not be written."""
        written = None
        if self.accelerator.is_main_process:
            written = checkpoint.save(
                self.output_dir, self.step, self.seen, self.bare_unet, self.stateful, self.settings, self.described,
                self.args.checkpoints_total_limit, best.best_folder(self.output_dir),
            )  # fmt: skip
        self.accelerator.wait_for_everyone()
        return written

    @property
    def described(self) -> dict[str, object]:
        """The header of a LoRA saved now."""
        return {**self.metadata, "steps": self.step}

    @property
    def counts(self) -> dict[str, int]:
        """Parameters of the LoRA and of the UNet with it, and the run's length."""
        everything = sum(p.numel() for p in self.bare_unet.parameters())
        counts = {"lora_parameters": sum(p.numel() for p in self.parameters), "unet_parameters": everything}
        return counts | {"images_per_step": self.step_samples, "total_steps": self.max_steps}


def make_optimizer(
    args: argparse.Namespace, parameters: list[nn.Parameter], step_samples: int, fused: bool
) -> torch.optim.Optimizer:
    """AdamW as flagged; --scale_lr multiplies the learning rate by the number of images in a step.

    fused: one kernel for all parameters; not with a gradient scaler, whose skipped updates accelerate would not see.
    """
    kind = partial(torch.optim.AdamW, fused=fused)
    if args.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit as kind
        except ImportError:
            raise InputError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from None
    return kind(
        parameters,
        lr=args.learning_rate * (step_samples if args.scale_lr else 1),
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )
