"""Reading images and bringing them to the square that the models see. Shared by training and inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from utils.image_io.opening import open_image
from utils.image_io.rgb import ORIENTATION, png_chunks, read_label, upright_rgb

if TYPE_CHECKING:
    import torch

__all__ = ["Crop", "multiple_for", "read_label", "read_rgb", "same_aspect", "size_of", "upright_rgb", "whole_size"]

ORIENTED = {b"eXIf", b"iTXt", b"tEXt", b"zTXt"}  # the chunks of a PNG in which Pillow looks for it


def read_rgb(path: str | Path) -> Image.Image:
    """Read any image file as upright 8-bit sRGB (see `upright_rgb`). InputError names an unreadable one."""
    return upright_rgb(path)


def same_aspect(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """True if two sizes have the same proportions, (width, height) each, up to one pixel of rounding."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


def size_of(path: str | Path) -> tuple[int, int]:
    """(width, height) of an image, upright as `read_rgb` has it, from its header alone. InputError as there."""
    with open_image(path) as image:
        width, height = image.size
        if image.format == "TIFF" and hasattr(image, "tag_v2"):  # newer Pillows turn `size` already
            width, height = image.tag_v2[256], image.tag_v2[257]
        plain = image.format == "PNG" and not ORIENTED & png_chunks(path).keys()  # Pillow would decode all of it
        turned = not plain and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)  # by a quarter
    return (height, width) if turned else (width, height)


def multiple_for(side: int) -> int:
    """The sides of whole images are multiples of this: 64, which Stable Diffusion's VAE and UNet together can halve
    down to the UNet's last level; 8 for sides below 256, which rounding to 64 would bend too much.
    """
    return 64 if side >= 256 else 8


def whole_size(width: int, height: int, side: int) -> tuple[int, int]:
    """(height, width) of a whole image whose short side becomes `side`, the long one the nearest multiple."""
    multiple = multiple_for(side)
    long = round(side * max(width, height) / min(width, height) / multiple) * multiple
    return (long, side) if height > width else (side, long)


@dataclass(frozen=True)
class Crop:
    """A resize of the short side to `side` and a square window, or none, the same for every map of one sample.

    `height`, `width`: after the resize; `top`, `left`: the window's corner in it; `side`: its size. All in pixels.
    `all_of_it`: without a window.
    """

    height: int
    width: int
    top: int
    left: int
    side: int
    all_of_it: bool = False

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

    @classmethod
    def whole(cls, width: int, height: int, side: int) -> Crop:
        """No window: the whole image in its `whole_size`."""
        height, width = whole_size(width, height, side)
        return cls(height, width, 0, 0, side, all_of_it=True)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of what is kept."""
        return (self.height, self.width) if self.all_of_it else (self.side, self.side)

    def picture(self, image: Image.Image) -> torch.Tensor:
        """8-bit RGB image -> float32 (3,*window) in [-1,1], resized bilinearly with antialiasing."""
        image = image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        rows, columns = self.window
        image = image.crop((self.left, self.top, self.left + columns, self.top + rows))
        import torch  # only here: the evaluation reads images too, and does without

        pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")  # numpy: torch would start threads
        pixels /= 255
        pixels -= 0.5
        pixels /= 0.5
        return torch.from_numpy(pixels)

    def reached(self, pixels: np.ndarray) -> np.ndarray:
        """bool (H,W) -> bool (*window,): which pixels of `picture` contain some of these, as the resize mixes them."""
        size, (rows, columns) = (self.width, self.height), self.window
        weights = Image.fromarray(pixels.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        return np.asarray(weights)[self.top : self.top + rows, self.left : self.left + columns] > 0

    def array(self, values: np.ndarray) -> np.ndarray:
        """(H,W,...) -> (*window,...) by nearest neighbour: measured values are never mixed with invalid ones."""
        down, across = self.window
        rows = ((np.arange(self.top, self.top + down) + 0.5) * values.shape[0] / self.height).astype(int)
        columns = ((np.arange(self.left, self.left + across) + 0.5) * values.shape[1] / self.width).astype(int)
        return values[rows[:, None], columns[None, :]]
