"""A trained generator taken on: more steps of the same, or the same pictures by velocity (mini-sd-2).

mini-sd-2 stands in for Stable Diffusion 2.1: it predicts v = a_t eps - sigma_t z0 on a schedule whose last step is
pure noise (zero terminal SNR, arXiv 2305.08891, algorithm 1), sampled from t = T-1 on (trailing spacing). It begins as
mini-sd, UNet and text encoder train together, and the VAE stays as it is.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL

from miniworld.pretraining.generator import (
    Latents,
    Parts,
    encode_pictures,
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
    """The pictures' latents, with the scale that the trained VAE has settled on."""
    return replace(encode_pictures(vae, rgb, captions, parts.tokenizer, folder, half), scale=vae.config.scaling_factor)


def continued_stage(
    parts: Parts, data: Latents, vae: AutoencoderKL, folder: Path, batch: int, half: bool, **settings
) -> Stage:
    """More steps of `generator_stage`, on batches and noise that it has not seen.

    InputError as in `begin_from`, or where `parts` predicts velocity: the editor that follows predicts noise.
    """
    if predicts_velocity(parts.scheduler):
        raise InputError("--continue_from: this generator predicts velocity; give --velocity_from more steps instead")
    begin_from(parts, folder)
    return generator_stage(parts, data, vae, folder, batch, half, name=MORE, **settings)


def velocity_stage(
    parts: Parts, data: Latents, vae: AutoencoderKL, folder: Path, batch: int, half: bool, **settings
) -> Stage:
    """Give `parts` the schedule of zero terminal SNR, in place, and train it to predict velocity there.

    InputError as in `begin_from`, or where `parts` predicts velocity already.
    """
    if predicts_velocity(parts.scheduler):
        raise InputError("--velocity_from: this generator predicts velocity already; name one that predicts noise")
    begin_from(parts, folder)
    parts.scheduler = zero_snr_scheduler(parts.scheduler)
    return generator_stage(parts, data, vae, folder, batch, half, name=VELOCITY, **settings)


def begin_from(parts: Parts, folder: Path) -> None:
    """Unfreeze `parts`, and note in `folder` which weights the stage begins with.

    InputError: the stage in `folder` began with others, so that resuming it would end in a model that came from those.
    """
    mark, path = f"{fingerprint(parts.unet, parts.text_encoder):08x}\n", folder / "begun_from.txt"
    if path.exists() and path.read_text() != mark:
        raise InputError(f"{folder}: was begun from another generator; name another --work, or remove this folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(mark)
    for part in (parts.unet, parts.text_encoder):
        part.requires_grad_(True).train()
