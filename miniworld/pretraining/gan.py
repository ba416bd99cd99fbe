"""The GAN: StyleGAN2's generator and discriminator, small, trained from scratch on rendered images only.

Both take their steps together, on the same fakes G(z), real images x, and logits D:

    generator        softplus(-D(G(z)))                                   (arXiv 1406.2661, non-saturating)
    discriminator    softplus(D(G(z))) + softplus(-D(x))
                     + GAMMA / 2 * |grad_x D(x)|^2, every LAZY steps and LAZY times as strong   (1801.04406, R1)

No normal, depth, albedo or shading map is used, and no caption. The layers' noise is zero (as in StyleGAN3,
2106.12423), because w can express all that varies in rendered scenes, and the map must be a function of w alone.
The discriminator is StyleGAN2's (arXiv 1912.04958): residual blocks, and the deviation over a few images.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from generators.stylegan2 import EPSILON, EqualLinear, StyleGAN2, blur_kernel, leaky
from miniworld.pretraining.stage import Stage
from miniworld.pretraining.vae import save_sheet, to_tensor

CHANNELS = {
    4: 192,
    8: 160,
    16: 96,
    32: 32,
    64: 16,
}  # many at low resolutions, which lay out the scene; few at high ones, which are expensive
STYLE_DIM, DEPTH = 128, 4
GAMMA, LAZY = 1.0, 16
GROUP = 4  # images over which the discriminator takes the deviation of features
NAME = "gan"


class Conv(nn.Module):
    """A convolution at equalised learning rate, (B,C,H,W) -> (B,O,H,W), or half the side after a low pass."""

    def __init__(self, inputs: int, outputs: int, kernel: int, down: bool = False, active: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if active else None
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / math.sqrt(self.weight[0].numel())
        kernel = weight.shape[-1]
        if self.down and kernel == 1:
            x = F.conv2d(x, blur_kernel(x.shape[1], x), stride=2, padding=1, groups=x.shape[1])
            x = F.conv2d(x, weight)
        elif self.down:
            x = F.conv2d(x, blur_kernel(x.shape[1], x), padding=2, groups=x.shape[1])
            x = F.conv2d(x, weight, stride=2)
        else:
            x = F.conv2d(x, weight, padding=kernel // 2)
        return x if self.bias is None else leaky(x + self.bias[None, :, None, None])


class Block(nn.Module):
    """Two convolutions, the second to half the side, and a shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.conv2 = Conv(inputs, inputs, 3), Conv(inputs, outputs, 3, down=True)
        self.skip = Conv(inputs, outputs, 1, down=True, active=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


class Discriminator(nn.Module):
    """Images (B,3,S,S) -> logits (B,), high = real. channels: resolution -> features, 4 to S. B must be a multiple of
    GROUP, or less than GROUP.
    """

    def __init__(self, channels: Mapping[int, int]):
        super().__init__()
        sides = sorted(channels, reverse=True)
        blocks = [Block(channels[side], channels[below]) for side, below in pairwise(sides)]
        self.convs = nn.Sequential(Conv(3, channels[sides[0]], 1), *blocks)
        self.last = Conv(channels[4] + 1, channels[4], 3)
        self.hidden, self.logit = EqualLinear(16 * channels[4], channels[4]), EqualLinear(channels[4], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x)
        x = self.last(torch.cat([x, deviation(x)], dim=1))
        return self.logit(leaky(self.hidden(x.flatten(1))))[:, 0]


def deviation(x: Tensor) -> Tensor:
    """Mean deviation of features over groups of images, as a feature map (B,1,H,W) (1710.10196, section 3)."""
    groups = x.reshape(min(GROUP, len(x)), -1, *x.shape[1:])  # (GROUP, B/GROUP, C, H, W)
    mean = (groups.var(0, unbiased=False) + EPSILON).sqrt().mean((1, 2, 3))
    return mean.repeat(len(groups))[:, None, None, None].expand(-1, 1, *x.shape[2:])


def build_gan(size: int = 64) -> tuple[StyleGAN2, Discriminator]:
    channels = {side: count for side, count in CHANNELS.items() if side <= size}
    generator = StyleGAN2(channels, STYLE_DIM, DEPTH)
    quick(generator.input.input)
    for noise in generator.noises.buffers():
        noise.zero_()
    return generator, Discriminator(channels)


def quick(x: Tensor) -> Tensor:
    """Put images, features or a parameter, in place, into the memory format with the fastest convolutions on a CPU."""
    x.data = x.data.contiguous(memory_format=torch.channels_last)
    return x


def gan_stage(
    generator: StyleGAN2, discriminator: Discriminator, rgb: np.ndarray, folder: Path, batch: int, **settings
) -> Stage:
    """Train both on images rgb (N,S,S,3) uint8, mirrored at random. Their moving averages are kept."""

    def loss(step: int, rng: Generator) -> dict[str, Tensor]:
        chosen = torch.randint(len(rgb), (batch,), generator=rng).numpy()
        real = to_tensor(rgb[chosen]) * 2 - 1
        real = quick(torch.where(torch.rand(batch, 1, 1, 1, generator=rng) < 0.5, real, real.flip(3)))
        fake = generator(generator.mapping(torch.randn(batch, generator.style_dim, generator=rng)))
        return gan_losses(discriminator, real, fake, regularised=step % LAZY == 0)

    def sheet(modules: dict[str, nn.Module], path: Path) -> None:
        save_sheet(list(samples(modules["generator"], 64, seed=0).split(8)), path)

    modules = {"generator": generator, "discriminator": discriminator}
    # no momentum, because the other network changes the loss at every step (1710.10196, appendix A.1)
    settings = {"betas": (0.0, 0.99), "weight_decay": 0.0, "clip": 1e9, "cooldown": 0.1} | settings
    return Stage(NAME, folder, modules, loss, sheet, **settings)


def gan_losses(discriminator: nn.Module, real: Tensor, fake: Tensor, regularised: bool) -> dict[str, Tensor]:
    """Losses by name, each with gradients for its own network only."""
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
    """`count` images (count,3,S,S) in [-1,1]."""
    z = torch.randn(count, generator.style_dim, generator=Generator().manual_seed(seed))
    return torch.cat([generator(generator.mapping(part)) for part in z.split(64)]).clamp(-1, 1)
