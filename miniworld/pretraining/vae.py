"""Stage 1: the VAE, an AutoencoderKL for any image, trained on images only.

Loss per image x with posterior N(mu, sigma^2) and z sampled from it:

    mse(D(z), x) + KL_WEIGHT * KL(N(mu, sigma^2) || N(0, 1)) + POWER_WEIGHT * (mean(mu^2) - 1)^2

The last term makes the latents of all images about equally large. One scaling factor has to fit bright, pale and
black-and-white images, because a UNet learns to generate latents of one size only.

A second stage trains D alone for longer, on the mse of D(mu). The latents, and so what a UNet learns, do not change.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from miniworld.pretraining.augment import vary
from miniworld.pretraining.random_sd import build_vae
from miniworld.pretraining.stage import Stage

KL_WEIGHT = 1e-3
POWER_WEIGHT = 2e-3
CHANNELS, GROUPS = (32, 48, 96), 8  # 32 groups of 1 channel each would remove every colour's mean
CROPPED = 0.7  # share of the steps on crops of half the side: four times as many images for the same compute


def build_mini_vae(channels: tuple[int, ...] = CHANNELS, groups: int = GROUPS) -> AutoencoderKL:
    """images (B,3,H,W) in [-1,1] -> latents (B,4,H/4,W/4). Fully convolutional, so that it can be trained on crops."""
    vae = build_vae(channels, groups, attention=False)
    with torch.no_grad():
        vae.quant_conv.bias[4:] += (
            6  # log-variance: training would be slow with a posterior as narrow as `build_vae`'s
        )
    return vae.to(memory_format=torch.channels_last)


def vae_stage(vae: AutoencoderKL, rgb: np.ndarray, folder: Path, batch: int, half: bool, **settings) -> Stage:
    """Train `vae` on images `rgb` (N,S,S,3) uint8, with varied colours: first on crops, then on whole images, a
    quarter as many.
    """

    def loss(step: int, rng: Generator) -> dict[str, Tensor]:
        cropped = step < CROPPED * settings["steps"]
        x = vae_batch(rgb, batch if cropped else max(1, batch // 4), rng, rgb.shape[1] // (2 if cropped else 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return vae_loss(vae, x, rng)

    return Stage("vae", folder, {"vae": vae}, loss, partial(vae_sheet, rgb), **settings)


def decoder_stage(vae: AutoencoderKL, rgb: np.ndarray, folder: Path, batch: int, half: bool, **settings) -> Stage:
    """Train the decoder of `vae` alone, on whole images."""
    decoder = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}

    def loss(step: int, rng: Generator) -> dict[str, Tensor]:
        x = vae_batch(rgb, max(1, batch // 4), rng, rgb.shape[1])
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            with torch.no_grad():
                mean = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean
            drawn = vae.decode(mean.contiguous(memory_format=torch.channels_last)).sample
            return {"mse": F.mse_loss(drawn.float(), x)}

    def sheet(modules: dict, path: Path) -> None:
        vae_sheet(rgb, {"vae": vae}, path)

    return Stage("decoder", folder, decoder, loss, sheet, **settings)


def vae_batch(rgb: np.ndarray, batch: int, rng: Generator, side: int) -> Tensor:
    """A training batch of the VAE: images, or crops of them, (B,3,side,side) in [-1,1], with varied colours."""
    chosen = torch.randint(len(rgb), (batch,), generator=rng).tolist()
    corners = torch.randint(rgb.shape[1] - side + 1, (batch, 2), generator=rng).tolist()
    pieces = [rgb[index, y : y + side, x : x + side] for index, (y, x) in zip(chosen, corners)]
    return vary(to_tensor(np.stack(pieces)), rng) * 2 - 1


def vae_loss(vae: AutoencoderKL, x: Tensor, rng: Generator) -> dict[str, Tensor]:
    """The loss of images x (B,3,S,S) in [-1,1], by term."""
    posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    z = mean + torch.exp(logvar / 2) * torch.randn(mean.shape, generator=rng)
    power = mean.pow(2).mean(dim=(1, 2, 3))
    return {
        "mse": F.mse_loss(vae.decode(z.contiguous(memory_format=torch.channels_last)).sample.float(), x),
        "kl": KL_WEIGHT * (mean.pow(2) + logvar.exp() - 1 - logvar).mean() / 2,
        "power": POWER_WEIGHT * (power - 1).pow(2).mean(),
    }


def vae_sheet(rgb: np.ndarray, modules: dict, path: Path, count: int = 10) -> None:
    """Write images with their reconstructions below them: as rendered, then with varied colours."""
    plain = to_tensor(rgb[:count]) * 2 - 1
    rows = [plain, *(vae_batch(rgb, count, Generator().manual_seed(seed), rgb.shape[1]) for seed in range(2))]
    save_sheet([row for x in rows for row in (x, reconstruct(modules["vae"], x))], path)


@torch.no_grad()
def enlarge(vae: AutoencoderKL, factor: float) -> None:
    """Make the VAE's latents `factor` times as large, in place.

    Stable Diffusion's latents have a deviation of about 5.5, which its scaling factor brings to 1. A VAE with a
    deviation of 1 would hide every bug that omits the factor.
    """
    vae.quant_conv.weight[:4] *= factor
    vae.quant_conv.bias[:4] *= factor
    vae.quant_conv.bias[4:] += 2 * math.log(factor)  # log-variance
    vae.post_quant_conv.weight /= factor


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """D(E(x).mode()), (B,3,S,S) in about [-1,1]."""
    return vae.decode(vae.encode(x).latent_dist.mode()).sample


def to_tensor(rgb: np.ndarray) -> Tensor:
    """(B,S,S,3) uint8 -> (B,3,S,S) float in [0,1]."""
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2).float() / 255


def save_sheet(rows: list[Tensor], path: Path) -> None:
    """Write rows of images (N,3,S,S) in about [-1,1] as one PNG."""
    page = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    page = ((page.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    Image.fromarray(page.numpy()).save(path)
