"""Maps as people are used to seeing them. Files keep the declared frame; these pictures are for the eye."""

import numpy as np

from utils.intrinsics import Intrinsic
from utils.maps.conventions import to_frame

# ColorBrewer's Spectral (C. Brewer, colorbrewer2.org, Apache 2.0): red, yellow, blue
SPECTRAL = (
    "9e0142", "d53e4f", "f46d43", "fdae61", "fee08b", "ffffbf", "e6f598", "abdda4", "66c2a5", "3288bd", "5e4fa2",
)  # fmt: skip


def shown(values: np.ndarray, intrinsic: Intrinsic, frame: str = "opengl") -> dict[str, np.ndarray]:
    """A map's values -> title: uint8 picture (H,W,3); of depth two, coloured and grey.

    values: as `prediction_to_values` gives them. frame: of the colours of normals: opengl, blue-violet where a surface
    faces the viewer, or opencv, the files' own axes.
    """
    if intrinsic.kind == "normals":
        return {intrinsic.name: to_byte(to_frame(values, frame) / 2 + 0.5)}
    if intrinsic.kind == "depth":
        near = stretched(values)
        return {intrinsic.name: spectral(1 - near), f"{intrinsic.name}, grey": to_byte(_three(near))}
    return {intrinsic.name: to_byte(_three(values) if values.ndim == 2 else values)}


def stretched(values: np.ndarray) -> np.ndarray:
    """(H,W) -> [0,1], its 2nd and 98th percentiles becoming 0 and 1; a constant map becomes 0."""
    low, high = np.percentile(values, [2, 98])
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def spectral(values: np.ndarray) -> np.ndarray:
    """[0,1] (H,W) -> uint8 (H,W,3), 0 red, 1 blue; linear between the eleven colours."""
    colours = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in SPECTRAL], dtype=np.float64)
    places = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(values, places, colours[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def to_byte(values: np.ndarray) -> np.ndarray:
    """[0,1], clipped -> uint8, rounded."""
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


def _three(values: np.ndarray) -> np.ndarray:
    """(H,W) -> (H,W,3)."""
    return np.repeat(values[..., None], 3, axis=2)
