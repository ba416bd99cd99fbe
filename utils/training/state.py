"""The state of a run: LoRA, optimiser, schedule, step, moving averages and the count of skipped updates."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from utils.errors import InputError, warn
from utils.lora import lora_parameters
from utils.lora.layers import unwrap
from utils.system import environment
from utils.training import checkpoint
from utils.training.settings import ON_RESUME, Settings

PRECISION_ADVICE = "set by accelerate, not by a flag; pass --mixed_precision to continue with the one that you want"


class TrainingState:
    """Steps are optimiser steps; `seen` counts samples. `network` is accelerate's wrapper, only to be called;
    `bare_network` is the network itself.

    images: size of the training set, which gives the steps of an epoch.
    """

    def __init__(self, settings: Settings, accelerator: Accelerator, network: nn.Module, images: int):
        self.accelerator, self.output_dir, self.typed = accelerator, settings.output_dir, settings.typed
        self.step = self.seen = 0
        self.step_samples = (
            settings.train_batch_size * settings.gradient_accumulation_steps * accelerator.num_processes
        )
        self.max_steps = length_of(settings, images, self.step_samples)
        self.parameters = lora_parameters(network)
        optimizer = make_optimizer(settings, self.parameters, self.step_samples)
        self.schedule = make_schedule(settings, optimizer, self.max_steps)
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        self.bare_network = unwrap(self.network)
        self.averages = Averages(self.parameters, settings.ema_decay)
        self.skipped = Skipped(settings.max_nonfinite)
        self.stateful: dict[str, checkpoint.Stateful] = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "skipped": self.skipped,
        }
        if settings.ema_decay:
            self.stateful["averages"] = self.averages
        if accelerator.scaler is not None:
            self.stateful["scaler"] = accelerator.scaler

    def update(self, usable: Tensor) -> None:
        """One step of the optimiser, from clipped gradients, which are set to zero; where `usable`, a bool on the
        device, is False, the weights and the optimiser's state stay as they are.

        The device itself decides, because the host would have to wait for the result: `found_inf` makes torch's fused
        AdamW skip its step, as a gradient scaler would.
        """
        optimizer = self.optimizer.optimizer
        if isinstance(optimizer, torch.optim.AdamW):
            optimizer.found_inf = (~usable).float()
            optimizer.step()
            del optimizer.found_inf
        elif usable:
            optimizer.step()
        if self.accelerator.scaler is not None:  # which clipping has told of an overflow
            self.accelerator.scaler.update()
        self.optimizer.zero_grad()

    def load(self, source: Path, shared: dict[str, object], force: bool) -> None:
        """Continue from the checkpoint `source`. shared: see `shared_settings`. InputError: another experiment's."""
        base_lrs = self.schedule.base_lrs
        fixed = {} if "mixed_precision" in self.typed else {"mixed_precision": PRECISION_ADVICE}
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
        # a byte of nf4 has two weights
        everything = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in self.bare_network.parameters())
        counts = {"lora_parameters": sum(p.numel() for p in self.parameters), "all_parameters": everything}
        return counts | {"images_per_step": self.step_samples, "total_steps": self.max_steps}


class Averages:
    """Moving averages of the LoRA's weights: average += (1 - d) (weight - average) after every step.

    d = min(decay, (1 + n) / (10 + n)) after n earlier steps, so that the initial weights soon have no influence. A
    decay of 0 turns averages off.

    The state contains the weights too, because a checkpoint's LoRA contains the averages. diffusers' `EMAModel` does
    not keep them, and has d = 0 in its first step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self.parameters, self.decay, self.steps = parameters, decay, 0
        self.values = self.weights() if decay else []
        self.aside: list[Tensor] | None = None  # the weights, while the averages are in their place

    def weights(self) -> list[Tensor]:
        """A copy of the network's weights."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def update(self) -> None:
        """Call after each step of the optimiser."""
        if self.decay:
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self.parameters], 1 - decay)
            self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network has the averages as its weights."""
        if not self.decay:
            yield
            return
        self.aside = self.weights()
        self.put(self.values)
        try:
            yield
        finally:
            self.put(self.aside)
            self.aside = None

    @torch.no_grad()
    def put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> Mapping[str, object]:
        return {"steps": self.steps, "weights": self.aside or self.weights(), "averages": self.values}

    def load_state_dict(self, state: Any, /) -> None:
        self.steps = state["steps"]
        self.put(state["weights"])
        for own, value in zip(self.values, state["averages"], strict=True):
            own.copy_(value)


class Report:
    """What the host has to know of an optimiser step: [loss, gradient norm, stop], the mean of all processes.

    A GPU copies it to the host without a wait; `read` waits for that copy alone, so it can be called a step later,
    while the device works on the next step.

    losses (M,), stems: of this process's M micro-batches. rate: the step's learning rate.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        step: int,
        losses: Tensor,
        norm: Tensor,
        stop: bool,
        stems: Sequence[Sequence[str]],
        rate: float,
        speed: float,
    ):
        self.step, self.losses, self.stems, self.rate, self.speed = step, losses, stems, rate, speed
        values = torch.stack([losses.mean(), norm.float(), torch.full_like(norm, float(stop), dtype=torch.float32)])
        values = accelerator.reduce(values, reduction="mean")
        self.usable = torch.isfinite(values[:2]).all()
        self.values, self.copied = values.to("cpu", non_blocking=True), None
        if values.is_cuda:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> tuple[float, float, bool]:
        """Loss and gradient norm, either of them NaN or infinite where the update was skipped, and whether any
        process has to stop.
        """
        if self.copied is not None:
            self.copied.synchronize()
        loss, norm, stops = self.values.tolist()
        return loss, norm, stops > 0


class Skipped:
    """Updates skipped because loss or gradient were NaN or infinite, in total and consecutively.

    Part of a run's state: a resumed run continues the count. An overflow in fp16 that a gradient scaler handles is not
    counted: the scaler skips some steps while it looks for the largest usable scale.
    """

    def __init__(self, limit: int):
        self.limit, self.total, self.in_a_row = limit, 0, 0

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def count(
        self,
        loss: float,
        norm: float,
        report: Report,
        output_dir: Path,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        """Call for each step, in every process; loss and norm are what all processes agree on.

        The files named are those of this process's non-finite losses, or of all where only the gradient is not finite.

        Raises:
            InputError: `limit` consecutive updates were skipped.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return
        if math.isfinite(loss) and scaler is not None and scaler.get_scale() >= 1:
            return
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        bad = (~torch.isfinite(report.losses)).tolist()
        mine = [stem for wrong, batch in zip(bad, report.stems) if wrong or math.isfinite(loss) for stem in batch]
        files = ", ".join(sorted(set(gather_object(mine))))
        text = f"step {report.step}: loss {loss:g}, gradient norm {norm:g}, update skipped ({self.in_a_row} in a row)"
        warn(f"{text}; in the batch: {files}")
        if self.in_a_row >= self.limit:
            raise InputError(
                f"{text}, as many as --max_nonfinite allows; in the batch: {files}; last good "
                f"checkpoint: {checkpoint.last_good(output_dir)}; "
                "look at these files, lower --learning_rate, or train in fp32 or bf16"
            )


def shared_settings(
    settings: Settings, metadata: dict[str, object], step_samples: int, accelerator: Accelerator, training_data: str
) -> dict[str, object]:
    """The settings that a checkpoint contains and that a resumed run is compared with: those of ON_RESUME."""
    values = vars(settings) | {"timestep": None, "masked_loss": False, "depth_coding": "linear", "crop": "square"}
    values |= metadata | circumstances(settings, accelerator)
    values |= {"images per step": step_samples, "training data": training_data}
    return {name: values[name] for name in ON_RESUME if name in values}


def circumstances(settings: Settings, accelerator: Accelerator) -> dict[str, object]:
    """How the run is computed, whether set by a flag or elsewhere."""
    device = accelerator.device.type
    tf32 = f"allow_tf32 {settings.allow_tf32}, NVIDIA_TF32_OVERRIDE {environment.tf32_variable() or 'unset'}"
    return {
        "mixed_precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "device": device,
        "compile": settings.compile,
        "TF32": "none" if device == "cpu" else tf32,
        "threads": torch.get_num_threads() if device == "cpu" else 0,
    }


def length_of(settings: Settings, images: int, step_samples: int) -> int:
    """The run's optimiser steps, from --max_train_steps or from --num_train_epochs over `images`."""
    if settings.max_train_steps is not None:
        return settings.max_train_steps
    if settings.num_train_epochs is None:
        raise InputError("no length: pass --max_train_steps or --num_train_epochs")
    return math.ceil(settings.num_train_epochs * images / step_samples)


def make_optimizer(settings: Settings, parameters: list[nn.Parameter], step_samples: int) -> torch.optim.Optimizer:
    """AdamW; --scale_lr multiplies the learning rate by the number of images in a step."""
    kind: Callable[..., torch.optim.Optimizer] = partial(torch.optim.AdamW, fused=True)
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


def make_schedule(settings: Settings, optimizer: torch.optim.Optimizer, max_steps: int) -> Any:
    """The learning rate's schedule. Also "constant" gets a warm-up, which diffusers would silently ignore."""
    warm = settings.lr_scheduler == "constant" and settings.lr_warmup_steps
    kind = "constant_with_warmup" if warm else settings.lr_scheduler
    return get_scheduler(kind, optimizer, num_warmup_steps=settings.lr_warmup_steps, num_training_steps=max_steps)
