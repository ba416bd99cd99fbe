"""How a whole image is brought to a size that the network takes, and its maps back to the image's own size."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from utils.intrinsics import Intrinsic
from utils.maps.pictures import unit_normals


@dataclass(frozen=True)
class Canvas:
    """Sizes (height, width) in pixels: the image's own, after the resize (inner), and after the padding (outer)."""

    own: tuple[int, int]
    inner: tuple[int, int]
    outer: tuple[int, int]

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
            inner = tuple(max(round(side / multiple), 1) * multiple for side in inner)
        return cls(size, inner, tuple(-(-side // multiple) * multiple for side in inner))

    def picture(self, image: Image.Image) -> Tensor:
        """8-bit RGB image of the own size -> float32 (3, *outer) in [-1,1]: resized with antialiasing, reflected."""
        height, width = self.inner
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        below, right = self.outer[0] - height, self.outer[1] - width
        pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="reflect")
        return (torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255 - 0.5) / 0.5

    def back(self, prediction: Tensor, intrinsic: Intrinsic, to_own: bool) -> Tensor:
        """A map (3, *outer) without its padding, (3, *inner); to_own: at the image's own size, (3, *own).

        Resized bilinearly, antialiased where it shrinks; normals as directions, which come out with length 1.
        """
        height, width = self.inner
        prediction = prediction[:, :height, :width]
        if not to_own or self.own == self.inner:
            return prediction
        if intrinsic.kind == "normals":
            return unit_normals(_resized(unit_normals(prediction), self.own))
        return _resized(prediction, self.own)

    def uncertainty_back(self, uncertainty: Tensor, to_own: bool) -> Tensor:
        """The same for an uncertainty (*outer)."""
        uncertainty = uncertainty[: self.inner[0], : self.inner[1]]
        return uncertainty if not to_own or self.own == self.inner else _resized(uncertainty[None], self.own)[0]


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(C,H,W) float -> (C,*size), bilinear."""
    return interpolate(values[None].float(), size=size, mode="bilinear", antialias=True)[0]
