"""How depth, or disparity, becomes a label's grey value, near = white, and back.

A label first brings each picture's quantity to u in [0,1], 0 = near and 1 = far, by its own near and far: an unknown
scale and shift. The coding is a fixed function f of u, and grey = 1 - f(u):

    linear   f(u) = u                  the released convention
    sqrt     f(u) = sqrt(u)
    log      f(u) = log10(1 + 9 u)     what the logarithm of depth is in a picture whose far is 10 times its near

Since f knows nothing of the picture, undoing it gives u again: the quantity up to scale and shift, as with linear
labels. (Of log d, itself stretched between near and far, only d up to scale and *power* would come back, which no
scale and shift absorb.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from utils.intrinsics import DEPTH_CODINGS

if TYPE_CHECKING:
    from torch import Tensor

Values = TypeVar("Values", np.ndarray, "Tensor")
LOG_RANGE = 9.0  # 1 + LOG_RANGE: far over near, where log coding is the logarithm of depth


def encode_far(u: np.ndarray, coding: str) -> np.ndarray:
    """f(u) of farness u in [0,1], in [0,1] too. Raises ValueError for an unknown coding."""
    if coding == "linear":
        return u
    if coding == "sqrt":
        return np.sqrt(u)
    if coding == "log":
        return np.log1p(LOG_RANGE * u) / np.log1p(LOG_RANGE)
    raise ValueError(f"a depth coding is one of {', '.join(DEPTH_CODINGS)}, not {coding!r}")


def decode_far(coded: Values, coding: str) -> Values:
    """u from f(u), of arrays or tensors; rising everywhere, also outside [0,1], where predictions stray."""
    if coding == "linear":
        return coded
    if coding == "sqrt":
        return coded * abs(coded)
    if coding == "log":
        return ((1 + LOG_RANGE) ** coded - 1) / LOG_RANGE
    raise ValueError(f"a depth coding is one of {', '.join(DEPTH_CODINGS)}, not {coding!r}")


def linear_map(picture: Tensor, coding: str) -> Tensor:
    """A predicted or labelled map (...,3,H,W) about [-1,1], near = 1 -> the same with linear coding.

    The mean of the channels, three times; a linear map is returned as it is.
    """
    if coding == "linear":
        return picture
    far = (1 - picture.float().mean(-3, keepdim=True)) / 2  # what the coding made of farness
    return (1 - 2 * decode_far(far, coding)).expand(picture.shape)
