"""StyleGAN2's discriminator (arXiv 1912.04958): residual blocks, and the deviation over a few pictures."""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.stylegan2 import EPSILON, EqualLinear, blur_kernel, leaky

GROUP = 4  # pictures over which the deviation is taken


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
    """Pictures (B,3,S,S) -> logits (B,), high = real. channels: resolution -> features, 4 to S. B: a multiple of
    GROUP, or less than it.
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
    """Mean deviation of features over groups of pictures, as a feature map (B,1,H,W) (1710.10196, section 3)."""
    groups = x.reshape(min(GROUP, len(x)), -1, *x.shape[1:])  # (GROUP, B/GROUP, C, H, W)
    mean = (groups.var(0, unbiased=False) + EPSILON).sqrt().mean((1, 2, 3))
    return mean.repeat(len(groups))[:, None, None, None].expand(-1, 1, *x.shape[2:])
