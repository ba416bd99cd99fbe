"""Reads intrinsic maps from .npy, .exr and .png of 8 or 16 bits: one reader for evaluation, data sets and checks.

`read_truth` and `read_prediction` give values, the pixels that are known (`known_pixels`), and name the file where it
is wrong. Nothing here guesses: a file that could mean two things is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.intrinsics import Kind
from utils.maps.deep import read_exr, read_rgb16
from utils.maps.known import Known, MaskShapeError, known_pixels
from utils.maps.opening import check_file, open_header

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # endings of the images we read
VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".gif")
MAPS = (".npy", ".exr", ".png")  # endings of the maps we read, the most precise first
SIXTEEN = "_16bit"  # how the stem of a .png ends that holds a map with 16 bits a channel
UNIT_ADVICE = "give --gt_depth_scale, the units per metre (1000: millimetres, NYUv2; 256: KITTI)"


class Raw(NamedTuple):
    """array: the numbers as stored, (H, W) or (H, W, C). about: the text in the file's header."""

    array: np.ndarray
    about: Mapping[str, str]


class Map(NamedTuple):
    """One map that was read. values: normals (H, W, 3), depth (H, W) or colour (H, W) or (H, W, 3), float.

    known: bool (H, W). unknown: reason -> pixels that have no value. coded: the file holds whole numbers of 8 or 16
    bits, which for colours are sRGB-coded as images are, where floats are linear.
    """

    values: np.ndarray
    known: np.ndarray
    unknown: Mapping[str, int]
    coded: bool


def read_array(path: Path) -> np.ndarray:
    """The numbers in a .npy, .exr or .png file as stored, (H, W) or (H, W, C); ValueError if it is unreadable."""
    return read_raw(path).array


def read_raw(path: Path) -> Raw:
    """The numbers of a map's file, and its header's text. ValueError if it is unreadable or no single map."""
    about: Mapping[str, str] = {}
    try:
        if path.suffix.lower() == ".npy":
            array = _load_npy(path)
        elif path.suffix.lower() == ".exr":
            array, about = read_exr(path)
        else:
            array, about = _read_png(path)
    except Exception as error:  # each decoder has its own; a broken header may ask for more memory than there is
        raise ValueError(f"cannot be read ({error})") from error
    if array.dtype.kind not in "buif":
        raise ValueError(f"holds {array.dtype}, not numbers")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"has shape {array.shape}: save one image as (H, W) or (H, W, C)")
    return Raw(array, about)


def read_npy(path: str | Path) -> np.ndarray:
    """One .npy array of any shape; pickled objects are never loaded. Raises InputError naming the file."""
    check_file(path)
    try:
        return _load_npy(path)
    except Exception as error:  # whatever a broken header leads to: wrong numbers, no memory for what it promises, ...
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise InputError(f"{path}: not a readable .npy array ({reason}); replace it or leave the sample out")


def read_truth(
    path: Path, kind: Kind, mask: Path | None = None, units_per_metre: float | None = None, advice: str = UNIT_ADVICE
) -> Map:
    """One map of ground truth. Raises InputError naming the file that is wrong.

    mask: the file of its mask. units_per_metre: of depth, whichever the format; None: floats are metres, and whole
    numbers an error that ends in `advice`. An unknown normal is the zero vector.
    """
    inside = None if mask is None else read_mask_named(mask)
    try:
        raw = read_raw(path)
        values = _decode(raw, kind)
        if kind == "depth":
            _check_metric(raw, path, units_per_metre, advice)
        known = known_pixels(kind, raw.array, inside, units_per_metre or 1.0, about=raw.about)
        if kind == "depth":
            _refuse_negative(values)
            values = values / (units_per_metre or 1.0)
    except ValueError as error:
        raise InputError(f"{mask if isinstance(error, MaskShapeError) else path}: {error}") from None
    return _map(raw, kind, values, known)


def read_prediction(path: Path, kind: Kind) -> Map:
    """One predicted map; depth has any unit and either polarity. Raises InputError naming the file.

    An unknown normal is the zero vector. Files that this project wrote have a value everywhere: there black is a
    prediction.
    """
    try:
        raw = read_raw(path)
        if kind == "depth" and raw.array.ndim == 3 and (raw.array == raw.array[..., :1]).all():
            raw = raw._replace(array=raw.array[..., 0])
        values = _decode(raw, kind)
        known = known_pixels(kind, raw.array, prediction=True, about=raw.about)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return _map(raw, kind, values, known)


def _map(raw: Raw, kind: Kind, values: np.ndarray, known: Known) -> Map:
    if kind == "normals" and not known.pixels.all():
        values = np.where(known.pixels[..., None], values, np.zeros((), values.dtype))
    return Map(values, known.pixels, known.unknown, coded=raw.array.dtype.kind == "u")


def _decode(raw: Raw, kind: Kind) -> np.ndarray:
    """Numbers as stored -> values: normals in [-1,1], depth in the file's unit, colours about [0,1]. ValueError where
    the type or shape does not fit the kind.
    """
    array, name = raw.array, raw.array.dtype
    if kind == "depth":
        if array.ndim != 2:
            raise ValueError(f"has shape {array.shape}: depth needs one channel, not a colour image")
        if name.kind == "b":
            raise ValueError("holds bool: depth is a number")
        values = array.astype(np.float64)
        if "value_at_0" in raw.about and name == np.uint16:  # this project's own 16 bits
            low, high = (float(raw.about[key]) for key in ("value_at_0", "value_at_65535"))
            values = low + values / 65535 * (high - low)
        return values
    if name.kind != "f" and name not in (np.uint8, np.uint16):
        raise ValueError(f"holds {name}: give floats, or 8 or 16 bits")
    if kind == "normals":
        if array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"has shape {array.shape}: normals need (H, W, 3)")
        if name == np.uint8:
            return array * np.float32(2 / 255) - np.float32(1)
        return array if name.kind == "f" else array * (2 / 65535) - 1
    if array.ndim == 3 and array.shape[2] != 3:
        raise ValueError(f"has shape {array.shape}: give (H, W) or (H, W, 3)")
    return array.astype(np.float64) if name.kind == "f" else array / np.iinfo(name).max


def _check_metric(raw: Raw, path: Path, units_per_metre: float | None, advice: str) -> None:
    """ValueError for depth whose unit nobody has stated."""
    if "polarity" in raw.about:
        raise ValueError(f"is a prediction, not metres (its header: {raw.about['polarity'][:80]})")
    if raw.array.dtype == np.uint8:
        what = "picture" if path.suffix.lower() == ".png" else "array"
        raise ValueError(f"is an 8-bit {what}, too coarse for metres: give .npy in metres or a 16-bit .png")
    if raw.array.dtype.kind != "f" and units_per_metre is None:
        png = path.suffix.lower() == ".png"
        what = "is a 16-bit .png of unknown unit" if png else f"holds {raw.array.dtype}, depth of unknown unit"
        raise ValueError(f"{what}: {advice}")


def _refuse_negative(depth: np.ndarray) -> None:
    """ValueError where depth counts against the viewing direction; a single negative number is a code instead."""
    negative = depth[np.isfinite(depth) & (depth < 0)]
    if 2 * negative.size > np.count_nonzero(np.isfinite(depth) & (depth != 0)) and negative.min() != negative.max():
        raise ValueError(
            f"depth is negative on {negative.size} of {depth.size} pixels: the camera looks along -z; negate it "
            "(np.save(file, -depth))"
        )


def read_mask(path: Path) -> np.ndarray:
    """True where valid, bool (H, W), from any number type; in .png any channel above zero."""
    array = read_array(path)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("has NaN or inf: a mask is zero or not zero")
    return (array != 0).any(axis=2) if array.ndim == 3 else array.astype(bool)


def read_mask_named(path: Path) -> np.ndarray:
    """`read_mask`; raises InputError naming the file."""
    try:
        return read_mask(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of (H, W) or (H, W, C) to `shape` = (height, width), float32; antialiased when it shrinks."""
    channels = np.atleast_3d(image.astype(np.float32))
    size = shape[::-1]
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(channels[..., c])).resize(size, Image.Resampling.BILINEAR))
        for c in range(channels.shape[2])
    ]
    return planes[0] if image.ndim == 2 else np.stack(planes, axis=2)


def _load_npy(path: str | Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        if "pickle" in str(error):  # numpy's text tells how to run the code in the file
            raise ValueError("no numbers: text, or objects, which are never unpickled") from None
        raise
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays: save a single one")
    return array


def _read_png(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    with open_header(path) as image:
        if image.format != "PNG":
            raise ValueError(f"is a {image.format} file with the name of a .png")
        with path.open("rb") as file:
            depth, colour = file.read(26)[24:]  # of the IHDR chunk: Pillow does not tell
        if image.mode not in ("L", "RGB", "I;16", "I", "1"):
            advice = "save it as grey or RGB, without palette or alpha (transparent = unknown: as <stem>_mask.png)"
            raise ValueError(f"has mode {image.mode}: {advice}")
        if "transparency" in image.info:
            raise ValueError("has a transparent colour: save it without, and what it leaves out as <stem>_mask.png")
        array = np.asarray(image)
        text = getattr(image, "text", {})  # after the pixels, since it may stand behind them in the file
    if depth == 16 and colour == 2:
        array = read_rgb16(path)
    return array.astype(np.uint16) if depth == 16 else array, dict(text)  # Pillow opens 16-bit grey as int32 or uint16
