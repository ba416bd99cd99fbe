"""Reading pictures and bringing them to the square that the models see. Shared by training and inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from utils.errors import InputError
from utils.maps.files import check_file

if TYPE_CHECKING:
    import torch

SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def open_picture(path: str | Path) -> Image.Image:
    """Open and fully decode one picture, turned upright by its EXIF orientation; its mode is left as it is.

    Raises:
        InputError: the file is missing, empty, truncated or no picture; the message names it.
    """
    check_file(path)
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Exception as error:  # each decoder has its own; all mean that there is no picture to be had
        reason = " ".join(str(error).split()).replace(f" {str(path)!r}", "")[:200] or type(error).__name__
        raise InputError(f"{path}: not a readable picture ({reason}); replace or remove it") from None


def read_rgb(path: str | Path) -> Image.Image:
    """Read any picture as 8-bit RGB: grey is repeated, alpha dropped, 16-bit grey scaled from 0..65535 to 0..255."""
    image = open_picture(path)
    if image.mode in SIXTEEN_BIT:
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise InputError(f"{path}: {image.mode} pixels have no known white; save the picture with 8 or 16 bits")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    return image.convert("RGB")


def read_label(path: str | Path) -> Image.Image:
    """Read an 8-bit pseudo label as RGB.

    Raises:
        InputError: also for a 16-bit or float picture: Pillow would clip it to white on the way to RGB.
    """
    image = open_picture(path)
    if image.mode in SIXTEEN_BIT:
        raise InputError(
            f"{path}: a 16-bit label (mode {image.mode}) would clip to white as RGB; "
            "write labels with 8 bits (near = white, far = black for depth)"
        )
    return image.convert("RGB")


def same_aspect(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes have one shape, (width, height) each, up to one pixel of rounding."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


@dataclass(frozen=True)
class Crop:
    """A resize of the short side to `side` and a square window, the same for every map of one sample.

    `height`, `width`: after the resize; `top`, `left`: the window's corner in it; `side`: its size. All in pixels.
    """

    height: int
    width: int
    top: int
    left: int
    side: int

    @classmethod
    def of(cls, width: int, height: int, side: int, rng: np.random.Generator | None = None) -> Crop:
        """The centre window (offset round((h - side) / 2)), or one drawn from `rng`.

        The long side becomes int(side * long / short): torchvision's rule, so that pixels equal the released code's.
        """
        if width <= height:
            width, height = side, int(side * height / width)
        else:
            width, height = int(side * width / height), side
        if rng is None:
            top, left = round((height - side) / 2), round((width - side) / 2)
        else:
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        return cls(height, width, top, left, side)

    def picture(self, image: Image.Image) -> torch.Tensor:
        """8-bit RGB picture -> float32 (3,side,side) in [-1,1], resized bilinearly with antialiasing."""
        image = image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        image = image.crop((self.left, self.top, self.left + self.side, self.top + self.side))
        import torch  # only here: the evaluation reads images too, and does without

        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
        return (pixels / 255 - 0.5) / 0.5

    def array(self, values: np.ndarray) -> np.ndarray:
        """(H,W,...) -> (side,side,...) by nearest neighbour: measured values are never mixed with invalid ones."""
        rows = ((np.arange(self.top, self.top + self.side) + 0.5) * values.shape[0] / self.height).astype(int)
        columns = ((np.arange(self.left, self.left + self.side) + 0.5) * values.shape[1] / self.width).astype(int)
        return values[rows[:, None], columns[None, :]]
