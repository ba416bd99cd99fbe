"""Overlapping windows over an image, and their maps merged into one without a seam.

Each window is encoded, predicted and decoded by itself, so that memory is one window's. The decoded maps are merged,
not the latents: it is values that have to agree, namely depth's scale and shift, and the length of normals.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm.auto import tqdm

from utils.inference.canvas import Canvas, up
from utils.intrinsics import Intrinsic

Maps = dict[str, Tensor]  # name of the intrinsic -> map (B,3,H,W)
Noise = Callable[[int, int], Tensor]  # height and width of latents -> standard normal (B,4,h,w)
Window = tuple[slice, slice]  # rows, columns; where the image repeats, they may end beyond it


def starts(length: int, size: int, overlap: int, step: int, wrap: bool) -> list[int]:
    """The starts of windows of `size` on a side of `length`: evenly, at multiples of `step`, overlapping by `overlap`
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


@dataclass(frozen=True)
class Tiling:
    """Windows of `tile` pixels, None: of the image's size, that overlap by `overlap`, None: a quarter of a window.

    wrap: the image repeats. factor: pixels per latent. multiple: of sides that the network takes. trained_at: side of
    the LoRA's training images. batch_size: windows at the same time.
    """

    tile: int | None
    overlap: int | None
    wrap: bool
    factor: int
    multiple: int
    trained_at: int
    batch_size: int

    @property
    def least_overlap(self) -> int:
        return (self.tile or self.trained_at) // 4 if self.overlap is None else self.overlap

    def window(self, side: int) -> int:
        """The length of a window on an image's side; the side's own where one window without wrapping covers it."""
        if not self.wrap:
            return min(side, self.tile or side)
        return min(self.tile or 2 * side, side + min(up(max(self.least_overlap, 1), self.multiple), side))

    def predict(
        self, run: Callable[..., Maps], rgb: Tensor, eps: Tensor | None, noise: Noise, adapters: Sequence[Any]
    ) -> Maps:
        """rgb (1,3,H,W), eps (1,4,h,w) -> maps (1,3,H,W) by `run(rgb, eps, adapters)`, window by window, merged."""
        shape = (rgb.shape[-2], rgb.shape[-1])
        size = (self.window(shape[0]), self.window(shape[1]))
        if size == shape:
            return run(rgb, eps, adapters)
        overlap = min(self.least_overlap, *(side // 2 for side in size))
        places = list(windows(shape, size, overlap, self.factor, self.wrap))
        mosaics = {one.intrinsic.name: Mosaic(shape, size, overlap, one.intrinsic) for one in adapters}
        references = self.references(run, rgb, noise, adapters) if len(places) > 1 else {}
        for first in tqdm(range(0, len(places), self.batch_size), desc="tiles", leave=False, delay=3):
            chunk = places[first : first + self.batch_size]
            pixels = torch.stack([cut(rgb[0], place) for place in chunk])
            noises = None if eps is None else torch.stack([cut(eps[0], self.in_latents(place)) for place in chunk])
            for name, maps in run(pixels, noises, adapters).items():
                for place, one in zip(chunk, maps, strict=True):
                    reference = cut(references[name], place) if name in references else None
                    mosaics[name].add(one, place, reference)
        return {name: mosaic.merged()[None] for name, mosaic in mosaics.items()}

    def in_latents(self, window: Window) -> Window:
        rows, columns = (slice(part.start // self.factor, part.stop // self.factor) for part in window)
        return rows, columns

    def references(self, run: Callable[..., Maps], rgb: Tensor, noise: Noise, adapters: Sequence[Any]) -> Maps:
        """Depth of the whole image at the training's resolution, (1,H,W), which the tiles' depths are brought to."""
        adapters = [adapter for adapter in adapters if adapter.intrinsic.map_kind.reference]
        if not adapters:
            return {}
        shape = (rgb.shape[-2], rgb.shape[-1])
        low = Canvas.of(shape, min(self.trained_at, *shape), self.multiple, wrap=True).inner
        small = interpolate(rgb, size=low, mode="bilinear", antialias=True)
        eps = noise(*(side // self.factor for side in low))
        return {name: enlarged(maps[0], shape) for name, maps in run(small, eps, adapters).items()}


def _pieces(part: slice, side: int) -> Iterator[tuple[slice, slice]]:
    """A window's part of a side that repeats -> (where a piece is on the side, where in the window), per round."""
    for begin in range(part.start // side * side, part.stop, side):
        low, high = max(part.start, begin), min(part.stop, begin + side)
        yield slice(low - begin, high - begin), slice(low - part.start, high - part.start)
