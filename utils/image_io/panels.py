"""Tensors and arrays as images, and images side by side: validation panels and sheets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from torch import Tensor

CAPTION_HEIGHT = 16  # pixels
BLOCK = 1 << 15  # pixels computed at a time
# ColorBrewer's Spectral (C. Brewer, colorbrewer2.org, Apache 2.0): red, yellow, blue
SPECTRAL = (
    "9e0142", "d53e4f", "f46d43", "fdae61", "fee08b", "ffffbf", "e6f598", "abdda4", "66c2a5", "3288bd", "5e4fa2",
)  # fmt: skip


def to_uint8(picture: Tensor) -> np.ndarray:
    """(3,H,W) in [-1,1], clamped -> uint8 (H,W,3), truncated as the released code does: 255 (x / 2 + 0.5)."""
    planes = picture.detach().float().cpu().numpy()
    found = np.empty((*planes.shape[1:], len(planes)), np.uint8)
    for rows in row_blocks(*planes.shape[1:]):  # by planes: numpy is ten times slower on values three apart
        values = np.clip(planes[:, rows], np.float32(-1), np.float32(1))
        values *= np.float32(0.5)
        values += np.float32(0.5)
        values *= np.float32(255)
        for c, plane in enumerate(values):
            found[rows, :, c] = plane
    return found


def row_blocks(height: int, width: int) -> Iterator[slice]:
    """The rows of an image in blocks that fit into a core's cache, temporary arrays included."""
    step = max(1, BLOCK // width)
    return (slice(first, first + step) for first in range(0, height, step))


def stretched(values: np.ndarray) -> np.ndarray:
    """(H,W) -> [0,1], its 2nd and 98th percentiles becoming 0 and 1; a constant map becomes 0."""
    low, high = np.percentile(values, [2, 98])
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def spectral(values: np.ndarray) -> np.ndarray:
    """[0,1] (H,W) -> uint8 (H,W,3), 0 red, 1 blue; linear between the eleven colours."""
    colours = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in SPECTRAL], dtype=np.float64)
    places = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(values, places, colours[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def to_byte(values: np.ndarray) -> np.ndarray:
    """[0,1], clipped -> uint8, rounded."""
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


def grey(picture: Tensor) -> Tensor:
    """(3,H,W) -> its mean over channels, three times."""
    return picture.mean(0, keepdim=True).expand(3, -1, -1)


def black(picture: Tensor) -> Tensor:
    """A black image of the same size: the ground-truth column where nothing is measured."""
    import torch

    return torch.full_like(picture, -1.0)


def strip(pictures: list[Tensor]) -> Image.Image:
    """Images (3,H,W) in [-1,1] side by side."""
    return Image.fromarray(np.hstack([to_uint8(picture) for picture in pictures]))


def sheet(rows: list[Image.Image], columns: list[str]) -> Image.Image:
    """Strips under each other, with the columns' names above; strips of another width are scaled to the first's."""
    rows = [rows[0], *(row if row.width == rows[0].width else _scaled(row, rows[0].width) for row in rows[1:])]
    width, side = rows[0].width, rows[0].width // len(columns)
    page = Image.new("RGB", (width, CAPTION_HEIGHT + sum(row.height for row in rows)), "white")
    draw = ImageDraw.Draw(page)
    for i, name in enumerate(columns):
        draw.text((i * side + 2, 1), name, fill="black")
    top = CAPTION_HEIGHT
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page


def _scaled(row: Image.Image, width: int) -> Image.Image:
    return row.resize((width, max(1, round(row.height * width / row.width))))


def small(picture: Image.Image, side: int) -> Image.Image:
    """A copy whose longer side is at most `side` pixels."""
    picture = picture.copy()
    picture.thumbnail((side, side))
    return picture
