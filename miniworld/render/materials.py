"""Named colours and the plain, striped and checked materials made of them.

Colours are linear RGB reflectances in [0, 1]. Patterns fade to their mean colour where a pixel covers more than a
stripe, so that the albedo itself is free of moire and RGB = albedo x shading needs no supersampling.
"""

from dataclasses import dataclass

import numpy as np

from utils.image_io.colour_space import to_linear

# sRGB-coded centres, chosen to be told apart by name at 64x64. Every colour drawn is jittered around one of these.
PALETTE = {
    "red": (0.78, 0.16, 0.14),
    "orange": (0.92, 0.52, 0.14),
    "yellow": (0.93, 0.82, 0.25),
    "green": (0.25, 0.60, 0.24),
    "teal": (0.16, 0.60, 0.60),
    "blue": (0.20, 0.36, 0.76),
    "purple": (0.50, 0.28, 0.66),
    "pink": (0.92, 0.56, 0.68),
    "brown": (0.48, 0.32, 0.20),
    "white": (0.93, 0.92, 0.89),
    "grey": (0.55, 0.55, 0.56),
    "black": (0.17, 0.17, 0.19),
}


def draw_colour(rng: np.random.Generator, name: str, jitter: float = 0.05) -> tuple[float, float, float]:
    """A linear RGB colour near the palette's `name`."""
    coded = np.asarray(PALETTE[name]) * rng.uniform(0.88, 1.08) + rng.uniform(-jitter, jitter, 3)
    return tuple(to_linear(np.clip(coded, 0.12, 0.97)))


@dataclass(frozen=True)
class Material:
    """Two linear colours in a pattern ("plain", "striped", "checked") whose bands are `band` metres wide.

    Stripes run along the second texture axis (upright on walls) or, with `level`, along the first.
    """

    colour: tuple[float, float, float]
    second: tuple[float, float, float]
    pattern: str = "plain"
    band: float = 0.4
    level: bool = False

    def albedo(self, uv, footprint):
        """Reflectance (3, N) at texture coordinates uv (2, N), averaged over `footprint` (N,) metres."""
        first = np.asarray(self.colour, np.float32)[:, None]
        if self.pattern == "plain":
            return np.broadcast_to(first, (3, uv.shape[1]))
        second = np.asarray(self.second, np.float32)[:, None]
        width = footprint / np.float32(self.band)
        if self.pattern == "striped":
            wave = square_wave(uv[1 if self.level else 0] / np.float32(self.band), width)
        else:
            across, along = uv / np.float32(self.band)
            wave = square_wave(across, width) * square_wave(along, width)
        return second + (first - second) * (0.5 + 0.5 * wave)


def square_wave(x, width):
    """Mean over [x - width/2, x + width/2] of the wave that is +1 on [0, 1), -1 on [1, 2), and so on; in [-1, 1]."""
    width = np.maximum(width, np.float32(1e-3))
    return (triangle(x + width / 2) - triangle(x - width / 2)) / width


def triangle(x):
    """The integral of the square wave: rises from 0 to 1 on [0, 1], falls back on [1, 2]."""
    return 1 - np.abs(x - 2 * np.floor(x / 2) - 1)


def draw_material(rng: np.random.Generator, name: str, pattern: str, band: float) -> Material:
    """A material of the named colour; the pattern's second colour is a lighter or darker one, or another hue."""
    colour = draw_colour(rng, name)
    if rng.random() < 0.3:
        second = draw_colour(rng, str(rng.choice(["white", "black", "grey"])))
        if abs(np.mean(second) - np.mean(colour)) < 0.15:
            second = tuple(np.asarray(colour) * 0.45)
    elif np.mean(colour) > 0.3:
        second = tuple(np.asarray(colour) * rng.uniform(0.35, 0.55))
    else:
        second = tuple(np.asarray(colour) + (0.92 - np.asarray(colour)) * rng.uniform(0.4, 0.7))
    return Material(colour, second, pattern, band, bool(rng.random() < 0.35))
