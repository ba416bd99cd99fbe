"""How a whole image is brought to a size that the network takes, and its maps back to the image's own size."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from utils.intrinsics import Intrinsic


@dataclass(frozen=True)
class Canvas:
    """Sizes (height, width) in pixels: the image's own, after the resize (inner), and after the padding (outer)."""

    own: tuple[int, int]
    inner: tuple[int, int]
    outer: tuple[int, int]
    wrap: bool = False

    @classmethod
    def of(cls, size: tuple[int, int], resolution: int | None, multiple: int, wrap: bool = False) -> "Canvas":
        """The canvas of an image of `size` (height, width) whose short side becomes `resolution`; None: as it is.

        The long side becomes int(resolution * long / short), as in `Crop`. Both are then rounded up to `multiple` by
        padding on the right and below. An image that repeats (wrap) takes no padding: it is resized to multiples.
        """
        height, width = size
        short = min(size)
        inner = size if resolution is None else (int(resolution * height / short), int(resolution * width / short))
        if wrap:
            inner = (_near(inner[0], multiple), _near(inner[1], multiple))
        return cls(size, inner, (up(inner[0], multiple), up(inner[1], multiple)), wrap)

    def picture(self, image: Image.Image) -> Tensor:
        """8-bit RGB image of the own size -> float32 (3, *outer) in [-1,1]: resized with antialiasing, reflected."""
        height, width = self.inner
        if self.wrap:
            pixels = self._wrapped_resize(np.asarray(image))
        else:
            pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        below, right = self.outer[0] - height, self.outer[1] - width
        pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="reflect")
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255).sub_(0.5).div_(0.5)

    def back(self, prediction: Tensor, intrinsic: Intrinsic, to_own: bool) -> Tensor:
        """A map (3, *outer) without its padding, (3, *inner); to_own: at the image's own size, (3, *own).

        Resized bilinearly, antialiased where it shrinks; normals as directions, which come out with length 1.
        """
        height, width = self.inner
        prediction = prediction[:, :height, :width]
        if not to_own or self.own == self.inner:
            return prediction
        return intrinsic.map_kind.resized(prediction, self._resized)

    def uncertainty_back(self, uncertainty: Tensor, to_own: bool) -> Tensor:
        """The same for an uncertainty (*outer)."""
        uncertainty = uncertainty[: self.inner[0], : self.inner[1]]
        return uncertainty if not to_own or self.own == self.inner else self._resized(uncertainty[None])[0]

    def _wrapped_resize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (H,W,3) of an image that repeats -> (*inner,3): the filter reads across its edges."""
        (top, above), (left, beside) = (_margin(*lengths) for lengths in zip(self.own, self.inner, strict=True))
        padded = Image.fromarray(np.pad(pixels, ((top, top), (left, left), (0, 0)), mode="wrap"))
        height, width = self.inner
        resized = padded.resize((width + 2 * beside, height + 2 * above), Image.Resampling.BILINEAR)
        return np.asarray(resized)[above : above + height, beside : beside + width]

    def _resized(self, values: Tensor) -> Tensor:
        """(C,*inner) float -> (C,*own), bilinear; across the edges of an image that repeats."""
        (height, width), above, beside = self.own, 0, 0
        if self.wrap:
            (top, above), (left, beside) = (_margin(*lengths) for lengths in zip(self.inner, self.own, strict=True))
            rows, columns = (torch.arange(-pad, side + pad) % side for pad, side in zip((top, left), self.inner))
            values = values[:, rows[:, None], columns]
        size = (height + 2 * above, width + 2 * beside)
        values = interpolate(values[None].float(), size=size, mode="bilinear", antialias=True)[0]
        return values[:, above : above + height, beside : beside + width]


def up(length: int, multiple: int) -> int:
    """The smallest multiple that is not less than `length`."""
    return -(-length // multiple) * multiple


def _near(length: int, multiple: int) -> int:
    return max(round(length / multiple), 1) * multiple


def _margin(length: int, target: int) -> tuple[int, int]:
    """Pixels to repeat on each side before a resize from `length` to `target`, and what they become: whole numbers,
    and more than a filter reads.
    """
    step = length // math.gcd(length, target)
    pad = up(math.ceil(4 * max(length / target, 1)), step)
    return pad, pad * target // length
