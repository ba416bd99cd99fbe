"""Stage 3: the editor, a UNet with an image as a second input, as in InstructPix2Pix (arXiv 2211.09800, 3.2).

Its 8 input channels are [z_t, E(condition).mode()], the second not scaled. The condition is a recoloured or blurred
version of the target image, so the editor has to take shapes from the condition and colours from the caption. No map
of the scene is used. It starts from the generator, with zero weights for the new channels of conv_in. The caption, the
condition, or both are dropped for one image in twenty each, as in InstructPix2Pix.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor
from torch.nn import functional as F

from miniworld.pretraining.augment import chance, recolour
from miniworld.pretraining.generator import Latents, Parts, decode, diffuse, encode, quick, tokenize, weighted_mse
from miniworld.pretraining.stage import Stage
from miniworld.pretraining.vae import save_sheet, to_tensor

DROPPED = 0.05
BLURRED = 0.25


def build_editor(generator: UNet2DConditionModel) -> UNet2DConditionModel:
    """The generator with four more input channels, whose weights are 0."""
    editor = UNet2DConditionModel.from_config(generator.config, in_channels=8)
    weights = generator.state_dict()
    weights["conv_in.weight"] = F.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, 4))
    editor.load_state_dict(weights)
    return quick(editor)


def editor_stage(
    editor, parts: Parts, vae, rgb: np.ndarray, data: Latents, folder: Path, batch: int, half: bool, **settings
) -> Stage:
    """Train `editor` on images rgb (N,S,S,3) uint8 with latents `data`. Text encoder and VAE do not change."""
    text_encoder, scheduler = parts.text_encoder, parts.scheduler

    def loss(step: int, rng: Generator) -> dict[str, Tensor]:
        chosen = torch.randint(len(rgb), (batch,), generator=rng)
        condition = conditions(rgb[chosen.numpy()], rng) * 2 - 1
        z_t, t, eps = diffuse(scheduler, data.draw(chosen, rng), rng)
        fate = torch.rand(batch, generator=rng)  # < D: no caption; D to 2D: neither; 2D to 3D: no condition
        no_caption, no_condition = fate < 2 * DROPPED, (fate >= DROPPED) & (fate < 3 * DROPPED)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            with torch.no_grad():
                text = text_encoder(torch.where(no_caption[:, None], data.empty, data.tokens[chosen]))[0]
            cond = torch.where(no_condition.view(-1, 1, 1, 1), 0, encode(vae, condition)[0])
            prediction = editor(stack(z_t, cond), t, text).sample
            return {"loss": weighted_mse(scheduler, prediction, eps, t)}

    def sheet(modules: dict, path: Path, count: int = 10) -> None:
        """Condition, edited image, target."""
        cond = conditions(rgb[:count], Generator().manual_seed(0)) * 2 - 1
        z = edit(modules["unet"], text_encoder, scheduler, data.tokens[:count], encode(vae, cond)[0], seed=0)
        save_sheet([cond, decode(vae, z / data.scale), to_tensor(rgb[:count]) * 2 - 1], path)

    return Stage("ip2p", folder, {"unet": editor}, loss, sheet, **settings)


def conditions(rgb: np.ndarray, rng: Generator) -> Tensor:
    """Images (B,S,S,3) uint8 -> the editor's conditions (B,3,S,S) in [0,1]: recoloured, some of them blurred."""
    x = recolour(to_tensor(rgb), rng)
    blurred = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear")
    return torch.where(chance(x, rng, BLURRED), blurred, x)


def stack(z_t: Tensor, cond: Tensor) -> Tensor:
    """[z_t, cond], (B,8,h,w)."""
    return torch.cat([z_t, cond], dim=1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def edit(editor, text_encoder, scheduler, tokens: Tensor, cond: Tensor, seed: int, steps: int = 20) -> Tensor:
    """Captions' tokens (B,L), unscaled condition latents (B,4,h,w) -> scaled latents, by DDIM without guidance."""
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    z = torch.randn(cond.shape, generator=Generator().manual_seed(seed))
    text = text_encoder(tokens)[0]
    for t in scheduler.timesteps:
        z = scheduler.step(editor(stack(z, cond), t, text).sample, t, z).prev_sample
    return z


@torch.no_grad()
def condition_gain(editor: UNet2DConditionModel, parts: Parts, vae, rgb: Tensor, captions: list[str]) -> float:
    """The error with another scene's image relative to the error with its own: 1 if the image has no effect.

    rgb (N,3,S,S) in [-1,1], rooms and yards in turn. Mean squared error of eps at t = 600, where little of z0 is left.
    """
    cond = encode(vae, rgb)[0]
    z0, rng = vae.config.scaling_factor * cond, Generator().manual_seed(0)
    t, eps = torch.full((len(z0),), 600), torch.randn(z0.shape, generator=rng)
    z_t = parts.scheduler.add_noise(z0, eps, t)
    text = parts.text_encoder(tokenize(parts.tokenizer, captions))[0]
    own, other = (F.mse_loss(editor(stack(z_t, c), t, text).sample, eps) for c in (cond, cond.roll(2, 0)))
    return (other / own).item()
