"""How each depth data set is scored: Marigold (2312.02145), section 4.1, and its released evaluation.

Imports no numpy, so that command lines can offer the names at once.
"""

import math
from typing import NamedTuple


class DepthRule(NamedTuple):
    """How one data set is scored: clipping range in metres, and which ground truth counts."""

    min_depth: float | None
    max_depth: float | None
    in_range: bool  # only min < gt < max is valid
    needs_mask: bool = False
    fit_side: int | None = None  # fit scale and shift on a copy of at most that many pixels a side


DEPTH_RULES = {
    "plain": DepthRule(None, None, in_range=False),
    "diode": DepthRule(0.6, 350.0, in_range=False, needs_mask=True),
    "nyuv2": DepthRule(1e-3, 10.0, in_range=True),
    "kitti": DepthRule(1e-5, 80.0, in_range=True),
    "eth3d": DepthRule(1e-5, math.inf, in_range=True, fit_side=1024),
    "scannet": DepthRule(1e-3, 10.0, in_range=True),
}
