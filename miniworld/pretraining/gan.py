"""The GAN: StyleGAN2's generator and discriminator, small, trained from scratch on rendered pictures alone.

Both take their step at once, on the same fakes G(z), real pictures x, and logits D:

    generator        softplus(-D(G(z)))                                   (arXiv 1406.2661, non-saturating)
    discriminator    softplus(D(G(z))) + softplus(-D(x))
                     + GAMMA / 2 * |grad_x D(x)|^2, every LAZY steps and LAZY times as strong   (1801.04406, R1)

No normal, depth, albedo or shading map takes part, and no caption. The layers' noise is zero (as in StyleGAN3,
2106.12423): rendered scenes have nothing random but what w can say, and w alone has to decide the map.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from generators.stylegan2 import StyleGAN2
from miniworld.pretraining.discriminator import Discriminator
from miniworld.pretraining.stage import Stage
from miniworld.pretraining.vae import save_sheet, to_tensor

CHANNELS = {4: 192, 8: 160, 16: 96, 32: 32, 64: 16}  # many where they say what is where, few where they are dear
STYLE_DIM, DEPTH = 128, 4
GAMMA, LAZY = 1.0, 16
NAME = "gan"


def build_gan(size: int = 64) -> tuple[StyleGAN2, Discriminator]:
    channels = {side: count for side, count in CHANNELS.items() if side <= size}
    generator = StyleGAN2(channels, STYLE_DIM, DEPTH)
    quick(generator.input.input)
    for noise in generator.noises.buffers():
        noise.zero_()
    return generator, Discriminator(channels)


def quick(x: Tensor) -> Tensor:
    """Pictures or features in the memory format in which a CPU's convolutions are fastest; a parameter in place."""
    x.data = x.data.contiguous(memory_format=torch.channels_last)
    return x


def gan_stage(
    generator: StyleGAN2, discriminator: Discriminator, rgb: np.ndarray, folder: Path, batch: int, **settings
) -> Stage:
    """Train both on pictures rgb (N,S,S,3) uint8, mirrored at random; their moving averages are what is kept."""

    def loss(step: int, rng: Generator) -> dict[str, Tensor]:
        chosen = torch.randint(len(rgb), (batch,), generator=rng).numpy()
        real = to_tensor(rgb[chosen]) * 2 - 1
        real = quick(torch.where(torch.rand(batch, 1, 1, 1, generator=rng) < 0.5, real, real.flip(3)))
        fake = generator(generator.mapping(torch.randn(batch, generator.style_dim, generator=rng)))
        return gan_losses(discriminator, real, fake, regularised=step % LAZY == 0)

    def sheet(modules: dict[str, nn.Module], path: Path) -> None:
        save_sheet(list(samples(modules["generator"], 64, seed=0).split(8)), path)

    modules = {"generator": generator, "discriminator": discriminator}
    # a moment of 0: the other player's answer changes the loss at every step (1710.10196, appendix A.1)
    settings = {"betas": (0.0, 0.99), "weight_decay": 0.0, "clip": 1e9, "cooldown": 0.1} | settings
    return Stage(NAME, folder, modules, loss, sheet, **settings)


def gan_losses(discriminator: nn.Module, real: Tensor, fake: Tensor, regularised: bool) -> dict[str, Tensor]:
    """Losses by name, each with gradients for its own player only."""
    discriminator.requires_grad_(False)
    losses = {"generator": F.softplus(-discriminator(fake)).mean()}
    discriminator.requires_grad_(True)
    losses["fake"] = F.softplus(discriminator(fake.detach())).mean()
    real.requires_grad_(regularised)
    logits = discriminator(real)
    losses["real"] = F.softplus(-logits).mean()
    if regularised:
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        losses["r1"] = LAZY * GAMMA / 2 * slope.square().sum((1, 2, 3)).mean()
    return losses


@torch.no_grad()
def samples(generator: StyleGAN2, count: int, seed: int) -> Tensor:
    """`count` pictures (count,3,S,S) in [-1,1]."""
    z = torch.randn(count, generator.style_dim, generator=Generator().manual_seed(seed))
    return torch.cat([generator(generator.mapping(part)) for part in z.split(64)]).clamp(-1, 1)
