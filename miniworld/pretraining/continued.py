"""Further training of a trained generator: more of the same steps, or velocity prediction (mini-sd-2).

mini-sd-2 is the stand-in for Stable Diffusion 2.1: it predicts v = a_t eps - sigma_t z0 on a schedule whose last step
is pure noise (zero terminal SNR, arXiv 2305.08891, algorithm 1), and sampling starts at t = T-1 (trailing spacing). It
starts from mini-sd. UNet and text encoder are trained together, and the VAE does not change.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL

from miniworld.pretraining.generator import (
    Latents,
    Parts,
    encode_images,
    fingerprint,
    generator_stage,
    predicts_velocity,
)
from miniworld.pretraining.stage import Stage
from utils.errors import InputError
from utils.objectives import zero_snr_scheduler

MORE, VELOCITY = "more", "velocity"  # names of the stages, and of their folders


def latents_of(
    parts: Parts, vae: AutoencoderKL, rgb: np.ndarray, captions: list[str], folder: Path, half: bool
) -> Latents:
    """The images' latents, with the trained VAE's scale."""
    return replace(encode_images(vae, rgb, captions, parts.tokenizer, folder, half), scale=vae.config.scaling_factor)


def continued_stage(
    parts: Parts, data: Latents, vae: AutoencoderKL, folder: Path, batch: int, half: bool, **settings
) -> Stage:
    """More steps of `generator_stage`, on new batches and noise.

    InputError as in `begin_from`, or if `parts` predicts velocity: the editor that follows predicts noise.
    """
    if predicts_velocity(parts.scheduler):
        raise InputError("--continue_from: this generator predicts velocity; give --velocity_from more steps instead")
    begin_from(parts, folder)
    return generator_stage(parts, data, vae, folder, batch, half, name=MORE, **settings)


def velocity_stage(
    parts: Parts, data: Latents, vae: AutoencoderKL, folder: Path, batch: int, half: bool, **settings
) -> Stage:
    """Give `parts` the schedule of zero terminal SNR, in place, and train it to predict velocity there.

    InputError as in `begin_from`, or if `parts` predicts velocity already.
    """
    if predicts_velocity(parts.scheduler):
        raise InputError("--velocity_from: this generator predicts velocity already; name one that predicts noise")
    begin_from(parts, folder)
    parts.scheduler = zero_snr_scheduler(parts.scheduler)
    return generator_stage(parts, data, vae, folder, batch, half, name=VELOCITY, **settings)


def begin_from(parts: Parts, folder: Path) -> None:
    """Unfreeze `parts`, and record in `folder` which weights the stage starts with.

    InputError if the stage in `folder` started with others: resuming it would continue from those.
    """
    mark, path = f"{fingerprint(parts.unet, parts.text_encoder):08x}\n", folder / "begun_from.txt"
    if path.exists() and path.read_text() != mark:
        raise InputError(f"{folder}: started from another generator; name another --work, or remove this folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(mark)
    for part in (parts.unet, parts.text_encoder):
        part.requires_grad_(True).train()
