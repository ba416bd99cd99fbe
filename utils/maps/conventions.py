"""What a map's values mean: camera axes of normals, colour spaces."""

from __future__ import annotations

import numpy as np

from utils.maps.frames import FRAMES


def unit_vectors(vectors) -> np.ndarray:
    """Vectors (..., 3) scaled to length 1, float64; NaN where the vector is zero or not finite."""
    vectors = np.asarray(vectors, dtype=np.float64)
    with np.errstate(all="ignore"):
        # Dividing by the largest component first keeps squares of very long or short vectors inside float64's range.
        vectors = vectors / np.abs(vectors).max(axis=-1, keepdims=True)
        return vectors / np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]


def convert_frame(normals: np.ndarray, frame: str) -> np.ndarray:
    """Normals (..., 3) of `frame` in opencv axes; `to_frame` is the inverse."""
    order, signs = _axes(frame)
    if (order, signs) == ([0, 1, 2], [1, 1, 1]):
        return normals
    return normals[..., order] * np.array(signs, dtype=normals.dtype)


def to_frame(normals: np.ndarray, frame: str) -> np.ndarray:
    """Normals (..., 3) in opencv axes, in the axes of `frame`."""
    order, signs = _axes(frame)
    found = np.empty_like(normals)
    found[..., order] = normals * np.array(signs, dtype=normals.dtype)
    return found


def _axes(frame: str) -> tuple[list[int], list[int]]:
    """For each axis of opencv: its index in `frame`, and its sign."""
    return [abs(axis) - 1 for axis in FRAMES[frame]], [1 if axis > 0 else -1 for axis in FRAMES[frame]]


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB to linear light, IEC 61966-2-1; any shape, nominal range [0, 1], odd around 0."""
    size = np.abs(srgb)
    return np.sign(srgb) * np.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light to sRGB, the inverse of `to_linear`."""
    size = np.abs(linear)
    return np.sign(linear) * np.where(size <= 0.0031308, size * 12.92, 1.055 * size ** (1 / 2.4) - 0.055)


def convert_space(image: np.ndarray, source: str, target: str) -> np.ndarray:
    """`image` from colour space `source` to `target`, each srgb or linear."""
    if source == target:
        return image
    return to_linear(image) if target == "linear" else to_srgb(image)
