"""The latents that a loss uses. They are constant, because the VAE is frozen, so a batch may already contain them.

    rgb_mode                  E(rgb).mode()                 (B,4,h,w)
    target_mean, target_std   of E(target)'s posterior      (B,4,h,w) each; the target is sampled in every step

None is scaled by the VAE's scaling factor.
"""

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor
from torch.nn.functional import max_pool2d

from utils.noise import gaussian

NAMES = ("rgb_mode", "target_mean", "target_std")


@torch.no_grad()
def mode(vae: AutoencoderKL, image: Tensor) -> Tensor:
    """E(image).mode(), not scaled: (B,3,H,W) in [-1,1] -> (B,4,h,w)."""
    return vae.encode(image.to(vae.dtype)).latent_dist.mode()


@torch.no_grad()
def moments(vae: AutoencoderKL, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three latents of a batch of rgb and target, (B,3,H,W) in [-1,1]."""
    target = vae.encode(batch["target"].to(vae.dtype)).latent_dist
    return {"rgb_mode": mode(vae, batch["rgb"]), "target_mean": target.mean, "target_std": target.std}


def training_latents(vae: AutoencoderKL, batch: dict[str, Tensor], noise: list[Generator]) -> tuple[Tensor, Tensor]:
    """E(rgb).mode() and E(target).sample(), neither of them scaled, from images or from their `moments`."""
    if "rgb_mode" not in batch:
        batch = moments(vae, batch)
    mean, std = batch["target_mean"], batch["target_std"]
    return batch["rgb_mode"], mean + std * gaussian(mean.shape, noise, mean)


def cells(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The latent cells that count: those whose pixels are all valid (Marigold, arXiv 2312.02145, released code).

    mask: bool (B,1,H,W), valid pixels; or cells already, as the latent cache keeps them: H, W = `size`. size: (h, w)
    of the latents, which H and W are one and the same multiple of. Returns bool (B,1,h,w).
    """
    factor = mask.shape[-1] // size[1]
    if tuple(mask.shape[-2:]) != (factor * size[0], factor * size[1]):
        raise ValueError(f"a mask of {tuple(mask.shape[-2:])} does not fit latents of {tuple(size)}")
    return max_pool2d((~mask).float(), factor) == 0
