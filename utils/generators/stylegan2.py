"""StyleGAN2's generator (Karras et al. 2020, arXiv 1912.04958; skip connections of figure 7b) in plain PyTorch.

    w = mapping(z);  every convolution's input channels are scaled by a style A_l(w), and its outputs brought back to
    unit deviation (equation 3);  the picture is the sum of every resolution's RGB, upsampled.

A_l, an affine layer of w, is called `modulation` here. Modules are named as in rosinality's state dicts, the format in
which public weights go around outside NVIDIA's own code.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLUR = (1.0, 3.0, 3.0, 1.0)
GAIN = math.sqrt(2)  # makes up for what leaky ReLU takes of a signal's power
MAPPING_RATE = 0.01  # learning rate of the mapping's layers, relative to the rest
EPSILON = 1e-8


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, times GAIN."""
    return F.leaky_relu(x, 0.2) * GAIN


def blur_kernel(channels: int, like: Tensor, gain: float = 1.0) -> Tensor:
    """A depthwise low pass (channels,1,4,4) whose taps sum to `gain`."""
    line = like.new_tensor(BLUR)
    kernel = torch.outer(line, line)
    return (kernel * (gain / kernel.sum())).expand(channels, 1, 4, 4)


class EqualLinear(nn.Linear):
    """A linear layer at equalised learning rate: weights of unit deviation, scaled as they are used (1710.10196, 4.1).

    `fold` writes the scale into the weights: the same function, of a plain `nn.Linear`'s weights.
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0):
        super().__init__(inputs, outputs)
        nn.init.normal_(self.weight, std=1 / rate)
        nn.init.constant_(self.bias, bias)
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)

    @torch.no_grad()
    def fold(self) -> None:
        """W <- W scale, b <- b rate, in place."""
        self.weight *= self.scale
        self.bias *= self.rate
        self.scale = self.rate = 1.0


class PixelNorm(nn.Module):
    """x / sqrt(mean(x^2)) over the second axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPSILON)


class ModulatedConv(nn.Module):
    """A convolution (B,C,H,W) -> (B,O,H,W), or twice the side, whose input channels w (B,D) scales."""

    def __init__(self, inputs: int, outputs: int, kernel: int, style_dim: int, up: bool = False, norm: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(style_dim, inputs, bias=1.0)
        self.up, self.norm = up, norm

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        weight = self.weight[0] / math.sqrt(self.weight[0, 0].numel())
        style = self.modulation(w)  # (B,C)
        x = x * style[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = F.conv2d(x, blur_kernel(x.shape[1], x, gain=4.0), padding=1, groups=x.shape[1])
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if self.norm:  # equation 3, of outputs instead of weights: no convolution per picture is needed
            power = style.square() @ weight.square().sum((2, 3)).T
            x = x * torch.rsqrt(power + EPSILON)[:, :, None, None]
        return x


class Noise(nn.Module):
    """x + strength * noise, a picture of noise (1 or B,1,H,W) for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + self.weight * noise


class Bias(nn.Module):
    """leaky(x + b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return leaky(x + self.bias[None, :, None, None])


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool = False):
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style_dim, up)
        self.noise, self.activate = Noise(), Bias(outputs)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        return self.activate(self.noise(self.conv(x, w), noise))


class ToRGB(nn.Module):
    """Features -> RGB (B,3,H,W), added to the smaller resolution's picture, upsampled."""

    def __init__(self, inputs: int, style_dim: int):
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, style_dim, norm=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, w: Tensor, skip: Tensor | None = None) -> Tensor:
        rgb = self.conv(x, w) + self.bias
        if skip is None:
            return rgb
        return rgb + F.conv_transpose2d(skip, blur_kernel(3, skip, gain=4.0), stride=2, padding=1, groups=3)


class Constant(nn.Module):
    """The learnt 4x4 start of every picture."""

    def __init__(self, channels: int):
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class StyleGAN2(nn.Module):
    """z (B,D) -> w (B,D) by `mapping`; w -> picture (B,3,S,S) in about [-1,1] by `forward`.

    channels: resolution -> features, 4 to S, each twice the one before; depth: layers of the mapping.
    """

    def __init__(self, channels: Mapping[int, int], style_dim: int = 512, depth: int = 8):
        super().__init__()
        sides = sorted(channels)
        self.channels, self.style_dim, self.size = dict(channels), style_dim, sides[-1]
        mapping = [EqualLinear(style_dim, style_dim, rate=MAPPING_RATE) for _ in range(depth)]
        self.style = nn.ModuleList([PixelNorm(), *mapping])
        self.input = Constant(channels[4])
        self.conv1 = StyledConv(channels[4], channels[4], style_dim)
        self.to_rgb1 = ToRGB(channels[4], style_dim)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        self.noises = nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        for below, side in pairwise(sides):
            for inputs, up in ((channels[below], True), (channels[side], False)):
                self.noises.register_buffer(f"noise_{len(self.convs) + 1}", torch.randn(1, 1, side, side))
                self.convs.append(StyledConv(inputs, channels[side], style_dim, up))
            self.to_rgbs.append(ToRGB(channels[side], style_dim))

    @property
    def styles(self) -> int:
        """How many w a picture takes, where each layer may have its own: (B,styles,D)."""
        return len(self.convs) + 2

    def mapping(self, z: Tensor) -> Tensor:
        """z ~ N(0, I) (B,D) -> w (B,D)."""
        normalise, *layers = self.style
        w = normalise(z)
        for layer in layers:
            w = leaky(layer(w))
        return w

    def forward(self, w: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """w (B,D), or one for each layer (B,styles,D), -> picture (B,3,S,S), not clamped.

        noise: a picture per convolution, (1 or B,1,H,W); default: the generator's own, so that w decides all.
        """
        if w.ndim == 2:
            w = w[:, None].expand(-1, self.styles, -1)
        noise = list(self.noises.buffers()) if noise is None else noise
        x = self.conv1(self.input.input.expand(len(w), -1, -1, -1), w[:, 0], noise[0])
        rgb = self.to_rgb1(x, w[:, 1])
        for block, to_rgb in enumerate(self.to_rgbs):
            for i in (2 * block, 2 * block + 1):
                x = self.convs[i](x, w[:, i + 1], noise[i + 1])
            rgb = to_rgb(x, w[:, 2 * block + 3], rgb)
        return rgb
