"""Overlapping windows over an image, and their maps merged into one without a seam.

Each window is encoded, predicted and decoded by itself, so that memory is one window's. What is merged are the decoded
maps, not the latents: what has to agree are values, namely depth's scale and shift, and the length of normals.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from utils.intrinsics import Intrinsic

Window = tuple[slice, slice]  # rows, columns; where the image repeats, they may end beyond it


def starts(length: int, size: int, overlap: int, step: int, wrap: bool) -> list[int]:
    """Where windows of `size` begin on a side of `length`: evenly, at multiples of `step`, overlapping by `overlap`
    at least. wrap: the side is a circle, and a window may run over its end, once around at most.
    """
    if wrap:
        count = -(-length // (size - overlap))
        return [index * length // count // step * step for index in range(count)]
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [index * (length - size) // (count - 1) // step * step for index in range(count)]


def windows(shape: tuple[int, int], size: tuple[int, int], overlap: int, step: int, wrap: bool) -> Iterator[Window]:
    """The windows that cover an image of `shape`, row by row."""
    for top in starts(shape[0], size[0], overlap, step, wrap):
        for left in starts(shape[1], size[1], overlap, step, wrap):
            yield slice(top, top + size[0]), slice(left, left + size[1])


def cut(values: Tensor, window: Window) -> Tensor:
    """The window (C,h,w) of an image (C,H,W); what lies beyond its end is taken from its beginning."""
    rows, columns = (
        torch.arange(part.start, part.stop) % side for part, side in zip(window, values.shape[-2:], strict=True)
    )
    return values[..., rows[:, None], columns]


def weights(size: tuple[int, int], overlap: int) -> Tensor:
    """(h,w), 1 inside, falling to almost 0 over the outer `overlap` pixels as a squared sine: two that overlap by
    that much add up to 1.
    """
    sides = []
    for length in size:
        ramp = torch.sin(torch.pi / 2 * (torch.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
        side = torch.ones(length)
        side[:overlap] = ramp
        side[length - overlap :] = side[length - overlap :].minimum(ramp.flip(0))
        sides.append(side)
    return sides[0][:, None] * sides[1]


class Mosaic:
    """The weighted mean of windows' maps over an image of `shape` (height, width)."""

    def __init__(self, shape: tuple[int, int], size: tuple[int, int], overlap: int, intrinsic: Intrinsic):
        self.shape, self.intrinsic = shape, intrinsic
        self.weights = weights(size, overlap)
        self.total, self.weight = torch.zeros(3, *shape), torch.zeros(shape)

    def add(self, prediction: Tensor, window: Window, reference: Tensor | None = None) -> None:
        """A window's map (3,h,w). reference: of depth, a map (1,h,w) whose scale and shift it is brought to."""
        prediction = self.intrinsic.map_kind.tile(prediction, reference)
        weighted = torch.cat([self.weights * prediction, self.weights[None]])
        rows, columns = (list(_pieces(part, side)) for part, side in zip(window, self.shape, strict=True))
        for above, part_above in rows:
            for beside, part_beside in columns:
                piece = weighted[:, part_above, part_beside]
                self.total[:, above, beside] += piece[:3]
                self.weight[above, beside] += piece[3]

    def merged(self) -> Tensor:
        """The map (3,H,W), computed in place; normals with length 1. Nothing can be added afterwards."""
        self.total /= self.weight.clamp_(min=1e-12)
        return self.intrinsic.map_kind.untiled(self.total)


def enlarged(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A low-resolution depth (3,h,w) -> (1,*shape)."""
    return interpolate(values.mean(0)[None, None], size=shape, mode="bilinear", antialias=True)[0]


def _pieces(part: slice, side: int) -> Iterator[tuple[slice, slice]]:
    """A window's part of a side that repeats -> (where a piece lies on the side, where in the window), per round."""
    for begin in range(part.start // side * side, part.stop, side):
        low, high = max(part.start, begin), min(part.stop, begin + side)
        yield slice(low - begin, high - begin), slice(low - part.start, high - part.start)
