"""Reads intrinsic maps from .npy and .png; every refusal says what is wrong with the content and how to cure it.

The caller adds the file's name. Nothing here guesses: a file that could mean two things is an error.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.maps.conventions import normal_valid
from utils.maps.opening import check_file, open_header

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # endings of the images we read
VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".gif")
SIXTEEN = "_16bit"  # how the stem of a .png ends that holds a map with 16 bits a channel


def read_array(path: Path) -> np.ndarray:
    """The numbers in a .npy or .png file as stored, (H, W) or (H, W, C); ValueError if it is unreadable."""
    try:
        array = _load_npy(path) if path.suffix == ".npy" else _read_png(path)
    except Exception as error:  # each decoder has its own; a broken header may ask for more memory than there is
        raise ValueError(f"cannot be read ({error})") from error
    if array.dtype.kind not in "buif":
        raise ValueError(f"holds {array.dtype}, not numbers")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"has shape {array.shape}: save one image as (H, W) or (H, W, C)")
    return array


def read_npy(path: str | Path) -> np.ndarray:
    """One .npy array of any shape; pickled objects are never loaded. Raises InputError naming the file."""
    check_file(path)
    try:
        return _load_npy(path)
    except Exception as error:  # whatever a broken header leads to: wrong numbers, no memory for what it promises, ...
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise InputError(f"{path}: not a readable .npy array ({reason}); replace it or leave the sample out")


def read_normals(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(normals float (H, W, 3), known bool (H, W)). 8-bit RGB v decodes as 2 v / 255 - 1, black = unknown."""
    array = read_array(path)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"has shape {array.shape}: normals need (H, W, 3)")
    if path.suffix == ".npy":
        if array.dtype.kind != "f":
            raise ValueError(f"holds {array.dtype}: normals in .npy need floats, save encoded ones as .png")
        return array, normal_valid(array)
    if array.dtype != np.uint8:
        raise ValueError(f"holds {array.dtype}: normals in .png need 8-bit RGB, save others as .npy")
    return array * np.float32(2 / 255) - np.float32(1), normal_valid(array)


def read_depth(path: Path) -> np.ndarray:
    """A predicted depth or disparity (H, W), any unit: .npy, or .png of 8 or 16 bits, grey or with equal channels."""
    array = read_array(path)
    if array.ndim == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim != 2:
        raise ValueError(f"has shape {array.shape}: depth needs one channel, not a colour picture")
    return array.astype(np.float64)


def read_metric_depth(path: Path, units_per_metre: float | None) -> np.ndarray:
    """Ground truth depth (H, W) in metres: .npy, or a 16-bit .png divided by `units_per_metre`."""
    array = read_array(path)
    if array.ndim != 2:
        raise ValueError(f"has shape {array.shape}: ground truth depth needs one channel")
    if path.suffix == ".npy":
        return array.astype(np.float64)
    if array.dtype == np.uint8:
        raise ValueError("is an 8-bit picture, too coarse for metres: give .npy in metres or a 16-bit .png")
    if units_per_metre is None:
        raise ValueError("is a 16-bit .png of unknown unit: give --gt_depth_scale (KITTI 256, NYUv2 1000 per metre)")
    return array / units_per_metre


def read_colour(path: Path) -> np.ndarray:
    """Albedo or shading, float64 (H, W) or (H, W, 3): float .npy as it is, .png scaled to [0, 1]."""
    array = read_array(path)
    if array.ndim == 3 and array.shape[2] != 3:
        raise ValueError(f"has shape {array.shape}: give (H, W) or (H, W, 3)")
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"holds {array.dtype}: give floats, or 8 or 16 bits")
    return array / np.iinfo(array.dtype).max


def read_mask(path: Path) -> np.ndarray:
    """True where valid, bool (H, W), from any number type; in .png any channel above zero."""
    array = read_array(path)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("has NaN or inf: a mask is zero or not zero")
    return (array != 0).any(axis=2) if array.ndim == 3 else array.astype(bool)


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


def _read_png(path: Path) -> np.ndarray:
    with open_header(path) as image:
        if image.format != "PNG":
            raise ValueError(f"is a {image.format} file with the name of a .png")
        with path.open("rb") as file:
            depth, colour = file.read(26)[24:]  # of the IHDR chunk: Pillow does not tell
        if depth == 16 and colour != 0:
            raise ValueError("is 16-bit colour, which Pillow truncates to 8 bits: save it as .npy")
        if image.mode not in ("L", "RGB", "I;16", "I", "1"):
            raise ValueError(f"has mode {image.mode}: save it as grey or RGB, without palette or alpha")
        array = np.asarray(image)
    return array.astype(np.uint16) if depth == 16 else array  # Pillow opens 16-bit grey as int32 or uint16
