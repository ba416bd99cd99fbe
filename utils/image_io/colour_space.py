"""Colours of other spaces to sRGB: primaries and transfer functions by their code points in ITU-T H.273.

The codes are those of films and of PNG's cICP chunk. ICC profiles are converted by LittleCMS, in `utils.image_io.rgb`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Transfer = Callable[[np.ndarray], np.ndarray]
Chromaticities = tuple[float, float, float, float, float, float, float, float]  # xy of white, red, green, blue

D65 = (0.3127, 0.3290)
SRGB: Chromaticities = (*D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
ADOBE_RGB: Chromaticities = (*D65, 0.640, 0.330, 0.210, 0.710, 0.150, 0.060)
PRIMARIES: dict[int, Chromaticities | None] = {  # None: taken for sRGB's
    1: None,
    2: None,  # not stated
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),  # NTSC 1953
    5: None, 6: None, 7: None,  # PAL and NTSC: players show them as BT.709, from which they differ little
    8: (0.310, 0.316, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),  # film
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # DCI-P3
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
    22: None,  # EBU 3213
}  # fmt: skip

REFERENCE_WHITE = 203  # cd/m2, of a diffuse white surface in HDR (ITU-R BT.2408); it becomes sRGB's white


def _pq(v: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: signal in [0,1] to light, where 1 is the reference white."""
    power = np.power(v, 1 / 78.84375)
    share = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
    return 10_000 / REFERENCE_WHITE * np.power(share, 1 / 0.1593017578125)


def _hlg(v: np.ndarray) -> np.ndarray:
    """ARIB STD-B67 (BT.2100): signal in [0,1] to the scene's light, where 1 is the reference white, 75 % signal."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(v <= 0.5, v * v / 3, (np.exp((v - c) / a) + b) / 12)
    return scene / ((np.exp((0.75 - c) / a) + b) / 12)


TRANSFERS: dict[int, Transfer | None] = {  # None: taken for sRGB's, as players do with all of BT.709's kind
    1: None, 2: None, 6: None, 7: None, 11: None, 12: None, 13: None, 14: None, 15: None,
    4: lambda v: v**2.2,
    5: lambda v: v**2.8,
    8: lambda v: v,
    16: _pq,
    17: lambda v: 52.37 / 48 * v**2.6,  # SMPTE ST 428: digital cinema
    18: _hlg,
}  # fmt: skip
HDR = {16: "PQ", 18: "HLG"}


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


def to_srgb8(pixels: np.ndarray, transfer: Transfer | None, primaries: Chromaticities | None) -> np.ndarray:
    """uint8 or uint16 RGB (H,W,3) of another space -> uint8 sRGB; what is brighter than white or beyond sRGB is
    clipped. transfer: signal in [0,1] to light; None: sRGB's. primaries: None: sRGB's.
    """
    white = np.iinfo(pixels.dtype).max
    light = (transfer or to_linear)(np.arange(white + 1) / white).astype(np.float32)
    matrix = None if primaries is None else rgb_to_srgb(primaries).astype(np.float32)
    found = np.empty(pixels.shape, np.uint8)
    for first in range(0, len(pixels), 64):  # rows at a time: floats of a large image would not fit into memory
        rows = light[pixels[first : first + 64]]
        rows = rows if matrix is None else rows @ matrix.T
        found[first : first + 64] = np.rint(255 * to_srgb(rows.clip(0, 1)))
    return found


def rgb_to_srgb(primaries: Chromaticities) -> np.ndarray:
    """(3,3) from linear RGB of `primaries` to sRGB's; white stays white (Bradford)."""
    return np.linalg.inv(_to_xyz(SRGB)) @ _adapted(primaries[:2]) @ _to_xyz(primaries)


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1, (1 - x - y) / y])


def _to_xyz(primaries: Chromaticities) -> np.ndarray:
    columns = np.stack([_xyz(*primaries[i : i + 2]) for i in (2, 4, 6)], axis=1)
    return columns * np.linalg.solve(columns, _xyz(*primaries[:2]))


def _adapted(white: tuple[float, ...]) -> np.ndarray:
    """Bradford's adaptation of XYZ from `white` (x, y) to D65."""
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    ratio = (cone @ _xyz(*D65)) / (cone @ _xyz(white[0], white[1]))
    return np.linalg.inv(cone) @ np.diag(ratio) @ cone
