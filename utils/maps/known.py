"""Which pixels of a map are known: the one place that decides, for ground truth, labels, predictions and masks.

The rules depend on the kind of map and on how its numbers are stored (8 or 16 bits, other integers, floats), never on
the file format: a .png and a .npy of the same numbers have the same known pixels. docs/evaluation.md has them as a
table. Nothing here changes a value; the readers in utils/maps/files.py call it, and so do the data sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from utils.intrinsics import Kind

PROGRAM = "intrinsic-lora"  # how the header of this project's own files begins under "software"
OUTSIDE = "outside the mask"
NOT_FINITE = "NaN or inf"
# The largest numbers of uint16 and of float16, "no measurement" in many sets, and what is left of them after a
# division by the units that sets use per metre.
SATURATED = [top / units for top in (65535.0, 65504.0) for units in (1, 10, 100, 256, 1000)]
FAR = [float(f"1e{power}") for power in range(3, 9)] + [10.0**digits - 1 for digits in range(3, 9)]  # 1000, 999, ...
BEYOND = 1e9  # metres: nothing that a camera sees is a million kilometres away
FARTHEST_MEDIAN = 300.0  # metres: true depth beyond it is taken for millimetres
REPEATS = 10  # pixels on which a saturated value must repeat where the next one is not far below it


class Known(NamedTuple):
    """pixels: bool (H, W), true where the map has a value. unknown: reason -> pixels; each pixel is counted once."""

    pixels: np.ndarray
    unknown: dict[str, int]


class MaskShapeError(ValueError):
    """A mask of another size than its map."""


def known_pixels(
    kind: Kind,
    raw: np.ndarray,
    mask: np.ndarray | None = None,
    units_per_metre: float = 1.0,
    prediction: bool = False,
    about: Mapping[Any, object] = MappingProxyType({}),
) -> Known:
    """The pixels of one map that have a value, and why the others have none.

    raw: the numbers as the file stores them, (H, W) or (H, W, C); normals (H, W, 3). mask: (H, W) of any dtype, not
    zero = known. units_per_metre: of depth. prediction: every finite number of depth and colour is a value, since
    predicted depth has no unit and no zero point. about: the text in the file's header; an image that this project
    predicted has a value everywhere, and black is one of them.
    Raises MaskShapeError, and ValueError for normals of another shape.
    """
    if kind == "normals" and (raw.ndim != 3 or raw.shape[-1] != 3):
        raise ValueError(f"normals need a last axis of 3, not shape {raw.shape}")
    shape = raw.shape[:2]
    known, unknown = np.ones(shape, bool), {}
    if mask is not None:
        if mask.shape != shape:
            raise MaskShapeError(f"mask of shape {mask.shape} does not fit a map of {shape}")
        known = mask.astype(bool)
        if outside := int(known.size - np.count_nonzero(known)):
            unknown[OUTSIDE] = outside
    if raw.dtype.kind == "u" and str(about.get("software", "")).startswith(PROGRAM):
        return Known(known, unknown)
    if kind == "normals":
        rules = _normal_rules(raw)
    elif kind == "depth":
        rules = _finite_rule(raw) if prediction else _depth_rules(raw, known, units_per_metre)
    else:
        rules = _finite_rule(raw) if prediction else _colour_rules(raw)
    for reason, hit in rules:
        hit &= known
        if count := int(np.count_nonzero(hit)):
            unknown[reason] = unknown.get(reason, 0) + count
            known &= ~hit  # in place: the depth rules look at what is still known
    return Known(known, unknown)


def _normal_rules(raw: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """A unit vector never has three components of 0 or three of +-1: these are codes of "no normal here"."""
    planes = list(np.moveaxis(raw, -1, 0))  # plane by plane: reductions over a last axis of 3 are several times slower
    if raw.dtype.kind != "f":
        top = np.iinfo(raw.dtype).max
        low, high = (top - top // 255) // 2, (top + top // 255) // 2  # 127 and 128 of 255: the zero vector in a level
        yield "black", _all(plane == 0 for plane in planes)
        yield "mid-grey", _all((plane >= low) & (plane <= high) for plane in planes)
        yield "white", _all(plane == top for plane in planes)
        return
    yield NOT_FINITE, ~_all(map(np.isfinite, planes))
    yield "zero vector", _all(plane == 0 for plane in planes)
    # 8-bit codes that somebody decoded with 2 v / 255 - 1 before saving floats, whatever axes were flipped since
    size = np.abs(planes[0])
    if (size == 1).any():
        yield "decoded black or white", _all(np.abs(plane) == 1 for plane in planes)
    if (np.abs(size - 1 / 255) < 4e-6).any():
        yield "decoded mid-grey", _all(np.abs(np.abs(plane) - 1 / 255) < 4e-6 for plane in planes)


def _depth_rules(raw: np.ndarray, known: np.ndarray, units: float) -> Iterator[tuple[str, np.ndarray]]:
    """Measured depth. known: the caller's, which it updates after each rule."""
    yield from _finite_rule(raw)
    yield "0", raw == 0
    if raw.dtype.kind != "u":
        negative = raw < 0
        values = raw[negative & known]
        one = values.size and (values == values[0]).all()
        yield f"{values[0]:g}" if one else "negative", negative
    if raw.dtype.kind == "f":
        yield f"{BEYOND:g} m or more", raw >= np.float64(BEYOND * units)  # not float16, which would overflow
    else:
        yield f"{np.iinfo(raw.dtype).max}, the format's largest", raw == np.iinfo(raw.dtype).max
    while (code := _sentinel(raw, known, units)) is not None:
        yield f"{code:.7g}, far behind the rest", raw == code


def _sentinel(raw: np.ndarray, known: np.ndarray, units: float) -> float | None:
    """The map's largest depth if it is a code of "no measurement", not a distance; else None.

    It must be one of the numbers that sets use, exactly, and twice as far as the next depth. The largest number of
    16 bits is also a code where it repeats: a sensor that saturates there measured nothing.
    """
    largest = np.max(raw, where=known, initial=0)
    close = 1e-3 if raw.dtype == np.float16 else 1e-6
    number = float(largest)
    saturated = any(abs(size - code) <= close * code for code in SATURATED for size in (number, number / units))
    if not saturated and not any(abs(number / units - code) <= close * code for code in FAR):
        return None
    others = known & (raw != largest)
    following = float(np.max(raw, where=others, initial=0))
    if 0 < 2 * following <= number:
        return number
    repeats = np.count_nonzero(known & (raw == largest))
    return number if saturated and repeats >= REPEATS else None


def _colour_rules(raw: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Black and white are colours. A share of light is never -1."""
    yield from _finite_rule(raw)
    if raw.dtype.kind == "f":
        yield "-1", _every_channel(raw == -1)


def _finite_rule(raw: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if raw.dtype.kind == "f":
        yield NOT_FINITE, ~_every_channel(np.isfinite(raw))


def _every_channel(found: np.ndarray) -> np.ndarray:
    return found if found.ndim == 2 else np.logical_and.reduce(found, axis=2)


def _all(planes: Iterable[np.ndarray]) -> np.ndarray:
    """The pixels that are true in every plane."""
    found, *others = planes
    for plane in others:
        found = found & plane
    return found


def shares(unknown: Mapping[str, int], pixels: int, what: str) -> str | None:
    """ "12.5 % of <what> are unknown: 8.0 % mid-grey, 4.5 % black", the most frequent first; None if none is."""
    if not unknown or not pixels:
        return None
    ranked = sorted(unknown.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{_percent(count, pixels)} {reason}" for reason, count in ranked)
    return f"{_percent(sum(unknown.values()), pixels)} of {what} are unknown: {parts}"


def _percent(count: int, pixels: int) -> str:
    share = 100 * count / pixels
    return f"{share:.1f} %" if share >= 0.1 else f"{share:.1g} %"
