"""What a loss reads of a batch: latents. They are constant, since the VAE is frozen, so a batch may also bring them.

    rgb_mode                  E(rgb).mode()                 (B,4,h,w)
    target_mean, target_std   of E(target)'s posterior      (B,4,h,w) each; the target is sampled anew in every step

None is scaled by the VAE's scaling factor.
"""

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor

from utils.noise import gaussian

NAMES = ("rgb_mode", "target_mean", "target_std")


@torch.no_grad()
def mode(vae: AutoencoderKL, picture: Tensor) -> Tensor:
    """E(picture).mode(), not scaled: (B,3,H,W) in [-1,1] -> (B,4,h,w)."""
    return vae.encode(picture.to(vae.dtype)).latent_dist.mode()


@torch.no_grad()
def moments(vae: AutoencoderKL, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three latents of a batch of rgb and target, (B,3,H,W) in [-1,1]."""
    target = vae.encode(batch["target"].to(vae.dtype)).latent_dist
    return {"rgb_mode": mode(vae, batch["rgb"]), "target_mean": target.mean, "target_std": target.std}


def training_latents(vae: AutoencoderKL, batch: dict[str, Tensor], noise: list[Generator]) -> tuple[Tensor, Tensor]:
    """E(rgb).mode() and E(target).sample(), neither scaled, from pictures or from their `moments`."""
    if "rgb_mode" not in batch:
        batch = moments(vae, batch)
    mean, std = batch["target_mean"], batch["target_std"]
    return batch["rgb_mode"], mean + std * gaussian(mean.shape, noise, mean)
