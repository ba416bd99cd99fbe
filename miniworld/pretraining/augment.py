"""Colour augmentation, so that a VAE trained on rendered images can encode any image.

Rendered scenes have muted colours. A VAE trained only on them encodes saturated colours to latents that are far too
large. Everything here is what a photo editor does to a finished image. No map of any scene is used, because the input
is the image alone.
"""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
PLAIN = 0.3  # share of images left as they are
SEGMENTS = 5


def vary(rgb: Tensor, rng: Generator) -> Tensor:
    """Turn and recolour each of the images (B,3,H,W) in [0,1], H = W, at random. All randomness comes from `rng`."""
    return recolour(turn(rgb, rng), rng)


def recolour(rgb: Tensor, rng: Generator) -> Tensor:
    """A share `PLAIN` keeps its colours. The others are graded, mapped to a palette or painted by numbers, and some of
    them are then posterised or veiled.
    """
    looks = [graded(rgb, rng), mapped(rgb, rng), painted(rgb, rng)]
    look = torch.randint(len(looks), (len(rgb),), generator=rng)
    varied = torch.stack(looks)[look, torch.arange(len(rgb))]
    varied = pick(chance(rgb, rng, 0.15), posterised(varied, rng), varied)
    varied = pick(chance(rgb, rng, 0.25), veiled(varied, rng), varied)
    return pick(chance(rgb, rng, PLAIN), rgb, varied)


def turn(rgb: Tensor, rng: Generator) -> Tensor:
    """Mirror and transpose at random: the eight symmetries of the square."""
    for flip in (lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.transpose(2, 3)):
        rgb = pick(chance(rgb, rng, 0.5), flip(rgb), rgb)
    return rgb


def graded(rgb: Tensor, rng: Generator) -> Tensor:
    """Change saturation, contrast and gamma, and rotate the colour cube at random (hues, channel order, negatives)."""
    count = len(rgb)
    grey = luma(rgb)
    rgb = grey + (rgb - grey) * uniform(rgb, rng, 0.0, 3.0) * chance(rgb, rng, 0.8)
    turns = torch.linalg.qr(torch.randn(count, 3, 3, generator=rng)).Q  # uniform over rotations and mirrors
    whole = rgb.clamp(0, 1) ** torch.exp(uniform(rgb, rng, -0.7, 0.7)) - 0.5
    turned = torch.einsum("bij,bjhw->bihw", turns, whole)
    whole = pick(chance(rgb, rng, 0.5), turned, whole * torch.sign(uniform(rgb, rng, -1, 2)))
    return (0.5 + whole * torch.exp(uniform(rgb, rng, -0.7, 0.9)) + uniform(rgb, rng, -0.2, 0.2)).clamp(0, 1)


def mapped(rgb: Tensor, rng: Generator, stops: int = 4) -> Tensor:
    """A gradient map: brightness -> a palette of `stops` random colours, linear in between."""
    colours = torch.rand(len(rgb), stops, 3, generator=rng)
    place = rank(rgb) * (stops - 1)
    weights = (1 - (place - torch.arange(stops).view(1, -1, 1, 1)).abs()).clamp_min(0)  # (B,stops,H,W)
    return torch.einsum("bkhw,bkc->bchw", weights, colours)


def painted(rgb: Tensor, rng: Generator) -> Tensor:
    """Painting by numbers: each segment of similar brightness is filled with its own linear gradient."""
    segment = (rank(rgb) * SEGMENTS).long().clamp_max(SEGMENTS - 1)[:, 0]  # (B,H,W)
    chosen = F.one_hot(segment, SEGMENTS).movedim(-1, 1).float()
    slope = chance(rgb, rng, 0.6) * 0.6
    fields = torch.stack([gradient(rgb, rng, slope) for _ in range(SEGMENTS)], dim=1)  # (B,SEGMENTS,3,H,W)
    return torch.einsum("bkhw,bkchw->bchw", chosen, fields).clamp(0, 1)


def posterised(rgb: Tensor, rng: Generator) -> Tensor:
    """2 to 5 levels per channel."""
    levels = torch.randint(1, 5, (len(rgb), 1, 1, 1), generator=rng)
    return torch.round(rgb * levels) / levels


def veiled(rgb: Tensor, rng: Generator) -> Tensor:
    """Blend with a linear gradient of two colours."""
    strength = uniform(rgb, rng, 0, 0.7)
    return (rgb + strength * (gradient(rgb, rng, 0.6).clamp(0, 1) - rgb)).clamp(0, 1)


def gradient(rgb: Tensor, rng: Generator, slope) -> Tensor:
    """A random colour in the middle with random slopes, of up to `slope` from the middle to the edge. (B,3,H,W)"""
    count, height, width = len(rgb), rgb.shape[2], rgb.shape[3]
    down, across = torch.linspace(-1, 1, height).view(1, 1, -1, 1), torch.linspace(-1, 1, width).view(1, 1, 1, -1)
    middle = torch.rand(count, 3, 1, 1, generator=rng)
    x, y = (torch.rand(2, count, 3, 1, 1, generator=rng) * 2 - 1) * slope
    return middle + x * across + y * down


def rank(rgb: Tensor) -> Tensor:
    """Brightness, stretched to fill [0,1] in each image. (B,1,H,W)"""
    grey = luma(rgb)
    low, high = grey.amin(dim=(1, 2, 3), keepdim=True), grey.amax(dim=(1, 2, 3), keepdim=True)
    return (grey - low) / (high - low).clamp_min(1e-3)


def luma(rgb: Tensor) -> Tensor:
    """Perceived brightness. (B,3,H,W) -> (B,1,H,W)"""
    return (rgb * rgb.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def uniform(rgb: Tensor, rng: Generator, low: float, high: float) -> Tensor:
    """One number per image, (B,1,1,1)."""
    return low + (high - low) * torch.rand(len(rgb), 1, 1, 1, generator=rng)


def chance(rgb: Tensor, rng: Generator, odds: float) -> Tensor:
    """True for a share `odds` of the images, (B,1,1,1)."""
    return torch.rand(len(rgb), 1, 1, 1, generator=rng) < odds


def pick(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(which, yes, no)
