"""From LoRA files to a function of images: the base is loaded once, whatever the number of LoRAs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.base_model.names import note_revision
from utils.base_model.stable_diffusion import Base, load_base, load_donor, widen_conv_in
from utils.errors import InputError, note
from utils.inference.engine import Adapter, Engine
from utils.inference.job import Job, describe, find_base
from utils.inference.view import View
from utils.lora import fuse_lora, load_attn_procs
from utils.lora.layers import layers_of, lora_targets
from utils.objectives import AugUNet, SingleStep, zero_snr_scheduler
from utils.system.compute import compile_unet, dtype_of, warn_of_slow_bf16

DONOR = "timbrooks/instruct-pix2pix"


class Predictor(Engine):
    """Predictor("path/to/lora")(image) -> {"normal": Prediction}, of the whole image at its own size.

    lora: .safetensors, .bin or a training's output folder; several predict several maps from one base and one pass of
    its encoder. base: a folder or hub name, else the one that the LoRAs were made for. device: None: a GPU if there is
    one. dtype: fp32, fp16 or bf16. method, task, prompt, timestep, depth_coding: for files whose metadata lacks them.
    steps, guidance_scale, ensemble_size, seed, augment_from: of AugUNet's LoRAs, as inference_augunet.py has them.
    view: the fields of `View`, such as resolution=768, center_crop=True or tile=512.

    Raises InputError where a file, the base or the device is not available, or they do not fit together.
    """

    def __init__(
        self,
        lora: str | Path | Sequence[str | Path],
        base: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str = "fp32",
        *,
        method: str | None = None,
        task: str | None = None,
        prompt: str | None = None,
        revision: str | None = None,
        timestep: int | None = None,
        depth_coding: str | None = None,
        augment_from: str | None = None,
        steps: int = 25,
        guidance_scale: float = 3.0,
        ensemble_size: int = 1,
        seed: int = 1234,
        batch_size: int = 1,
        compile: bool = False,
        **view: Any,
    ):
        loras = [lora] if isinstance(lora, (str, Path)) else list(lora)
        known_base = None if base is None else str(base)
        self.jobs = [describe(one, method, task, prompt, known_base, depth_coding) for one in loras]
        name = _one_base(self.jobs)
        if base is None:  # else `check_base` has looked at it
            note_revision(name, revision)
        loaded = load_base(name, revision)
        for job in self.jobs:
            _note_other_base(job, loaded)
        place = pick_device(device)
        warn_of_slow_bf16(dtype_of(dtype), place.type, "dtype fp32")
        changes = _add_loras(loaded.unet, self.jobs, augment_from)
        loaded.to(place, dtype_of(dtype))
        if compile:
            compile_unet(loaded.unet, place)
        adapters = []
        for job, (weights, conv_in) in zip(self.jobs, changes, strict=True):
            known: SingleStep | AugUNet
            if job.method == "augunet":
                prompts = loaded.encode_prompt(job.prompt), loaded.encode_prompt("")
                schedule = zero_snr_scheduler(loaded.scheduler)
                known = AugUNet(loaded.vae, *prompts, schedule, steps=steps, guidance_scale=guidance_scale)
            else:
                t = _timestep(loaded, job) if timestep is None else loaded.timestep(timestep)
                if timestep is not None and job.timestep not in (None, timestep):
                    note(f"{job.name} was trained at timestep {job.timestep}, predicting at {timestep}")
                known = SingleStep(loaded.vae, loaded.encode_prompt(job.prompt), t)
            weights = {name: weight.to(place, dtype_of(dtype)) for name, weight in weights.items()}
            conv_in = None if conv_in is None else conv_in.to(place, dtype_of(dtype))
            adapters.append(
                Adapter(job.intrinsic, known, job.trained_at, job.depth_coding, weights, conv_in, job.facts)
            )
        touched = {name for adapter in adapters for name in adapter.weights}
        own = {name: loaded.unet.get_submodule(name).weight.data for name in touched}
        sizes = {"batch_size": batch_size, "ensemble_size": ensemble_size, "seed": seed}
        super().__init__(loaded.vae, loaded.unet, adapters, View(**view), own=own, **sizes)


def pick_device(wanted: str | torch.device | None) -> torch.device:
    """The device wanted, or a GPU (CUDA, Apple's MPS) if there is one, as accelerate chooses it for the scripts.

    Raises InputError where this machine has none of that name.
    """
    try:
        device = torch.device(wanted or torch.accelerator.current_accelerator(check_available=True) or "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise InputError(f"--device={wanted}: {reason}; try cpu, or leave it out") from None
    return device


def _one_base(jobs: Sequence[Job]) -> str:
    """The base of all LoRAs. InputError where they have several, or two LoRAs predict the same."""
    if not jobs:
        raise InputError("--lora: no LoRA given")
    for i, job in enumerate(jobs):
        for other in jobs[:i]:
            if job.intrinsic == other.intrinsic:
                raise InputError(f"--lora: {other.name} and {job.name} both predict {job.intrinsic.name}; use one")
            if job.model != other.model:
                raise InputError(
                    f"--lora: {other.name} was made for {other.model}, {job.name} for {job.model}: one base at a time"
                )
    return jobs[0].model


def _timestep(base: Base, job: Job) -> int:
    """The timestep in the LoRA's header, else the schedule's last. InputError where the schedule lacks it."""
    try:
        return base.timestep(job.timestep)
    except InputError as error:
        raise InputError(f"{job.name}: its header has timestep={job.timestep}, but {error}") from None


def _note_other_base(job: Job, base: Base) -> None:
    trained_on = job.trained_on or base.name
    if base.name not in (trained_on, str(Path(trained_on).resolve())):
        note(f"{job.name} was trained on {trained_on}, predicting with {base.name}")


def _add_loras(
    unet: nn.Module, jobs: Sequence[Job], augment_from: str | None
) -> list[tuple[dict[str, Tensor], nn.Conv2d | None]]:
    """A single LoRA is added to the UNet's weights, in place, and ({}, None) returned. Of several, each one's layers
    with the LoRA added, and its conv_in; the UNet stays the base's own.
    """
    first, found = unet.conv_in, []
    for job in jobs:
        load_attn_procs(unet, job.lora)
        layers = layers_of(unet, lora_targets(unet))
        before = {name: layer.weight.data.clone() for name, layer in layers.items()} if len(jobs) > 1 else {}
        fuse_lora(unet)
        if job.method == "augunet":
            _widen(unet, job, augment_from)
        if len(jobs) == 1:
            return [({}, None)]
        found.append(({name: unet.get_submodule(name).weight.data for name in before}, unet.conv_in))
        for name, weight in before.items():
            unet.get_submodule(name).weight.data = weight
        unet.conv_in = first
        unet.register_to_config(in_channels=first.in_channels)
    return found


def _widen(unet: nn.Module, job: Job, augment_from: str | None) -> None:
    """AugUNet's conv_in: the one the LoRA brings along, or made again as in training, from the donor in its header."""
    if unet.config.in_channels == unet.config.out_channels:
        stated = job.lora.metadata.get("augment_from")
        stated = None if stated in (None, "None") else find_base(stated, job.lora.path)
        if None not in (augment_from, stated) and Path(str(augment_from)) != Path(str(stated)):
            note(f"{job.name} was trained with the conv_in of {stated}, predicting with that of {augment_from}")
        widen_conv_in(unet, load_donor(augment_from or stated or DONOR))
    elif augment_from:
        raise InputError(f"--augment_from: {job.name} has its own conv_in.safetensors; leave the flag out")
