"""A tiny autoencoder for previews: diffusers' AutoencoderTiny, distilled from a generator's VAE on its images.

Loss per image x, with mu the mean of the VAE's posterior and s its scaling factor:

    mse(D_tiny(s mu), x) + mse(E_tiny(x), s mu)

Like TAESD (github.com/madebyollin/taesd) it reads and writes scaled latents, so that its own scaling factor is 1.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Generator, Tensor
from torch.nn import functional as F

from miniworld.pretraining.gates import batched, channels_last, unseen_scenes
from miniworld.pretraining.report import BEGIN, END, write_card
from miniworld.pretraining.stage import Stage
from miniworld.pretraining.vae import save_sheet, to_tensor, vae_batch
from utils.inference.job import SHIPPED
from utils.inference.predictor import Predictor
from utils.kinds.normals import angular_error

NAME = "tiny"
CHANNELS, ENCODER_BLOCKS, DECODER_BLOCKS = 32, (1, 2, 2), (2, 2, 1)  # TAESD: 64, (1, 3, 3, 3), (3, 3, 3, 1)
MEASURED = 64  # unseen scenes of the report

CARD = """---
license: apache-2.0
library_name: diffusers
tags:
- toy
---

# {name}

diffusers' AutoencoderTiny for [{generator}]({link}/README.md), as TAESD is for Stable Diffusion 1.5: {thousands:.0f}
thousand parameters in {megabytes:.2f} MB of float16. `--vae {path}` predicts with its decoder.

`python -m miniworld.pretrain --stage tiny` trained it on {generator}'s rendered images, varied in colour as for the
VAE: the decoder to draw the image from the VAE's scaled latents, the encoder to return those latents, both by mean
squared error. **No normal, depth, albedo or shading map was used.** AdamW at 2e-3, 16 crops of 32x32 a step, moving
averages with decay 0.998; {steps} steps of about 0.12 CPU seconds.

## Quality

`python -m miniworld.pretrain --stage tiny --report`, on {scenes} unseen scenes:

{begin}
{end}

## Licence

Apache-2.0, like the project.
"""


def build_tiny_vae(vae: AutoencoderKL, channels: int = CHANNELS) -> AutoencoderTiny:
    """images (B,3,H,W) in [-1,1] <-> scaled latents (B,4,H/4,W/4) of `vae`, for a VAE of three levels."""
    widths = (channels,) * len(ENCODER_BLOCKS)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=ENCODER_BLOCKS,
        num_decoder_blocks=DECODER_BLOCKS,
        latent_channels=vae.config.latent_channels,
    )
    return tiny.to(memory_format=torch.channels_last)


def tiny_stage(
    tiny: AutoencoderTiny, vae: AutoencoderKL, rgb: np.ndarray, folder: Path, batch: int, half: bool, **settings
) -> Stage:
    """Train `tiny` on crops of half the side from images `rgb` (N,S,S,3) uint8, with varied colours."""

    def loss(step: int, rng: Generator) -> dict[str, Tensor]:
        x = vae_batch(rgb, batch, rng, rgb.shape[1] // 2).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            with torch.no_grad():
                z = scaled_mean(vae, x)
            return {
                "decoder": F.mse_loss(tiny.decode(z).sample.float(), x),
                "encoder": F.mse_loss(tiny.encode(x).latents.float(), z),
            }

    return Stage(NAME, folder, {NAME: tiny}, loss, partial(tiny_sheet, vae, rgb), **settings)


def tiny_sheet(vae: AutoencoderKL, rgb: np.ndarray, modules: dict, path: Path, count: int = 10) -> None:
    """Write images, the VAE's reconstructions and the tiny decoder's, as rendered and then with varied colours."""
    plain = to_tensor(rgb[:count]) * 2 - 1
    rows = []
    for x in (plain, vae_batch(rgb, count, Generator().manual_seed(0), rgb.shape[1])):
        z = scaled_mean(vae, x)
        rows += [x, full_decoded(vae, z), modules[NAME].decode(z).sample]
    save_sheet(rows, path)


def scaled_mean(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """s mu of images x (B,3,S,S) in [-1,1], in fp32."""
    return vae.config.scaling_factor * vae.encode(x).latent_dist.mean.float()


def full_decoded(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """The VAE's images of scaled latents."""
    return vae.decode(z / vae.config.scaling_factor).sample


def save_tiny(folder: Path, generator: Path, tiny: AutoencoderTiny, steps: int) -> None:
    """Write the autoencoder in float16, with its card."""
    tiny.half().save_pretrained(folder)
    parameters = sum(weight.numel() for weight in tiny.parameters())
    names = {"name": folder.name, "generator": generator.name, "path": os.path.relpath(folder)}
    names |= {"link": os.path.relpath(generator, folder), "begin": BEGIN, "end": END, "scenes": MEASURED}
    card = CARD.format(**names, steps=steps, thousands=parameters / 1e3, megabytes=2 * parameters / 1e6)
    (folder / "README.md").write_text(card)


def report_tiny(folder: Path, generator: Path, seed: int) -> None:
    """Measure both decoders and the tiny encoder on unseen scenes, and write the table into the card."""
    vae = AutoencoderKL.from_pretrained(generator / "vae")
    tiny = AutoencoderTiny.from_pretrained(folder)
    maps, seen, _ = unseen_scenes(seed, MEASURED)
    ways = {
        "the VAE": lambda x: full_decoded(vae, scaled_mean(vae, x)),
        "its encoder, the tiny decoder": lambda x: tiny.decode(scaled_mean(vae, x)).sample,
        "the tiny encoder and decoder": lambda x: tiny.decode(tiny.encode(x).latents).sample,
    }
    flags = ({}, {"vae": str(folder)}, {"vae": str(folder), "vae_encodes": True})
    lines = [
        "| | RGB, PSNR | normal maps, degrees | predicted normals, degrees |",
        "|---|---|---|---|",
    ]
    for (name, way), more in zip(ways.items(), flags, strict=True):
        drawn = batched(lambda x, way=way: way(x).clamp(-1, 1), maps["rgb"])
        psnr = (10 * torch.log10(4 / (drawn - maps["rgb"]).pow(2).mean(dim=(1, 2, 3)))).mean()
        coded = batched(way, maps["normal"])
        predictor = Predictor(SHIPPED / "normal", str(generator), "cpu", batch_size=16, **more)
        images = list(to_images(maps["rgb"]))
        predicted = torch.stack([one["normal"].map for one in predictor(images)])
        angles = [mean_angle(one, maps["normal"], seen) for one in (coded, predicted)]
        lines.append(f"| {name} | {psnr:.2f} dB | {angles[0]:.2f} | {angles[1]:.2f} |")
    text = "\n".join(lines)
    print(text)
    write_card(folder / "README.md", text)


def to_images(rgb: Tensor) -> np.ndarray:
    """(N,3,S,S) in [-1,1] -> (N,S,S,3) uint8."""
    return ((channels_last(rgb) + 1) * 127.5).round().astype(np.uint8)


def mean_angle(normals: Tensor, truth: Tensor, seen: np.ndarray) -> float:
    """Mean angle in degrees between two (N,3,S,S), where there is a surface: `seen` (N,S,S)."""
    return float(angular_error(channels_last(normals)[seen], channels_last(truth)[seen]).mean())
