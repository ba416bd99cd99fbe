"""Reading pictures and bringing them to the square that the models see. Shared by training and inference."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from utils.errors import InputError
from utils.maps.files import check_file

if TYPE_CHECKING:
    import torch

ORIENTATION = 0x0112  # EXIF's tag
ORIENTED = {b"eXIf", b"iTXt", b"tEXt", b"zTXt"}  # the chunks of a PNG in which Pillow looks for it
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
        raise unreadable(path, error) from None


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


def size_of(path: str | Path) -> tuple[int, int]:
    """(width, height) of a picture, upright as `open_picture` has it, from its header alone. InputError as there."""
    check_file(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            plain = image.format == "PNG" and not ORIENTED & png_chunks(path)  # Pillow would decode it all to say so
            turned = not plain and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)  # by a quarter
    except Exception as error:  # as in open_picture
        raise unreadable(path, error) from None
    return (height, width) if turned else (width, height)


def png_chunks(path: str | Path) -> set[bytes]:
    """The names of a PNG's chunks, behind its pixels too, without reading what is in them."""
    names = set()
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            names.add(head[4:])
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return names


def multiple_for(side: int) -> int:
    """What the sides of whole pictures are multiples of: 64, which Stable Diffusion's VAE and UNet together can halve
    down to the UNet's last level; 8 for sides below 256, which rounding to 64 would bend too much.
    """
    return 64 if side >= 256 else 8


def whole_size(width: int, height: int, side: int) -> tuple[int, int]:
    """(height, width) of a whole picture whose short side becomes `side`, the long one the nearest multiple."""
    multiple = multiple_for(side)
    long = round(side * max(width, height) / min(width, height) / multiple) * multiple
    return (long, side) if height > width else (side, long)


@dataclass(frozen=True)
class Crop:
    """A resize of the short side to `side` and a square window, or none, the same for every map of one sample.

    `height`, `width`: after the resize; `top`, `left`: the window's corner in it; `side`: its size. All in pixels.
    `all_of_it`: there is no window.
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
        """No window: the whole picture in its `whole_size`."""
        height, width = whole_size(width, height, side)
        return cls(height, width, 0, 0, side, all_of_it=True)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of what is kept."""
        return (self.height, self.width) if self.all_of_it else (self.side, self.side)

    def picture(self, image: Image.Image) -> torch.Tensor:
        """8-bit RGB picture -> float32 (3,*window) in [-1,1], resized bilinearly with antialiasing."""
        image = image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        rows, columns = self.window
        image = image.crop((self.left, self.top, self.left + columns, self.top + rows))
        import torch  # only here: the evaluation reads images too, and does without

        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
        return (pixels / 255 - 0.5) / 0.5

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


def unreadable(path: str | Path, error: Exception) -> InputError:
    """The error of a file that Pillow does not take, with Pillow's reason."""
    reason = " ".join(str(error).split()).replace(f" {str(path)!r}", "")[:200] or type(error).__name__
    return InputError(f"{path}: not a readable picture ({reason}); replace or remove it")
