"""Sliced Wasserstein distance between two sets of images (Karras et al. 2018, arXiv 1710.10196, appendix G).

Each image becomes a Laplacian pyramid, and each level patches of 7x7 pixels. Each channel of a level's patches is
normalised to mean 0 and deviation 1 over the set. The distance of a level is the mean over random directions of the
mean absolute difference of the sorted projections, times 1,000 as in the paper.
"""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

BINOMIAL = (1, 4, 6, 4, 1)  # / 16, in both directions: the pyramid's low pass
PATCH = 7


def sliced_wasserstein(a: Tensor, b: Tensor, patches: int = 128, directions: int = 512, seed: int = 0) -> list[float]:
    """Distances of two sets of images (N,3,S,S) of equal size and range, per level from fine to coarse (S to 16)."""
    if a.shape != b.shape:
        raise ValueError(f"sets of different shapes: {tuple(a.shape)} and {tuple(b.shape)}")
    distances = []
    for level, (x, y) in enumerate(zip(pyramid(a), pyramid(b))):
        rng = Generator().manual_seed(seed + level)
        x, y = (descriptors(z, patches, rng) for z in (x, y))
        axes = F.normalize(torch.randn(x.shape[1], directions, generator=rng), dim=0)
        gap = (x @ axes).sort(dim=0).values - (y @ axes).sort(dim=0).values
        distances.append(1000 * gap.abs().mean().item())
    return distances


def pyramid(x: Tensor, smallest: int = 16) -> list[Tensor]:
    """Laplacian pyramid of images (N,3,S,S): differences between neighbouring scales, then the smallest image."""
    levels = []
    while x.shape[-1] > smallest:
        half = blur(x)[:, :, ::2, ::2]
        spread = torch.zeros_like(x)
        spread[:, :, ::2, ::2] = half
        levels.append(x - 4 * blur(spread))
        x = half
    return [*levels, x]


def blur(x: Tensor) -> Tensor:
    line = x.new_tensor(BINOMIAL) / 16
    kernel = torch.outer(line, line).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])


def descriptors(x: Tensor, patches: int, rng: Generator) -> Tensor:
    """`patches` random 7x7 patches of each image (N,3,s,s), normalised per channel, (N*patches, 147)."""
    count, _, side, _ = x.shape
    corner = torch.randint(side - PATCH + 1, (2, count, patches, 1, 1), generator=rng)
    y = corner[0] + torch.arange(PATCH).view(1, 1, -1, 1)
    z = corner[1] + torch.arange(PATCH).view(1, 1, 1, -1)
    found = x[torch.arange(count).view(-1, 1, 1, 1), :, y, z].flatten(0, 1)  # (N*patches,7,7,3)
    found = (found - found.mean(dim=(0, 1, 2))) / found.std(dim=(0, 1, 2))
    return found.flatten(1)
