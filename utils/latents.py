"""The latents that a loss uses. They are constant, because the VAE is frozen, so a batch may already contain them.

    rgb_mode                  E(rgb).mode()                 (B,C,h,w)
    target_mean, target_std   of E(target)'s posterior      (B,C,h,w) each; the target is sampled in every step

None is scaled by the VAE's scaling factor. C is 4 in Stable Diffusion. Qwen-Image's VAE is a video's: it takes and
gives one frame, (B,C,1,h,w), which is hidden here.
"""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import max_pool2d

from utils.noise import gaussian

NAMES = ("rgb_mode", "target_mean", "target_std")
VIDEO = "temperal_downsample"  # in the configuration of a VAE that takes frames, (B,3,F,H,W)


def reduction(vae: Any) -> int:
    """Pixels per latent on each side: 8 in Stable Diffusion."""
    return 2 ** (
        len(vae.config.temperal_downsample) if VIDEO in vae.config else len(vae.config.block_out_channels) - 1
    )


def channels(vae: Any) -> int:
    """Channels of the latents: 4 in Stable Diffusion."""
    return vae.config.z_dim if VIDEO in vae.config else vae.config.latent_channels


@torch.no_grad()
def posterior(vae: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, which is also the mode, and standard deviation of E(image): (B,3,H,W) in [-1,1] -> (B,C,h,w) each."""
    video = VIDEO in vae.config
    found = vae.encode((image[:, :, None] if video else image).to(vae.dtype)).latent_dist
    return (found.mean[:, :, 0], found.std[:, :, 0]) if video else (found.mean, found.std)


def mode(vae: Any, image: Tensor) -> Tensor:
    """E(image).mode(), not scaled: (B,3,H,W) in [-1,1] -> (B,C,h,w)."""
    return posterior(vae, image)[0]


def moments(vae: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three latents of a batch of rgb and target, (B,3,H,W) in [-1,1]."""
    mean, std = posterior(vae, batch["target"])
    return {"rgb_mode": mode(vae, batch["rgb"]), "target_mean": mean, "target_std": std}


def training_latents(vae: Any, batch: dict[str, Tensor], noise: list[Generator]) -> tuple[Tensor, Tensor]:
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
