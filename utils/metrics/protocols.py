"""What published evaluators do before they count: camera frames, depth data-set rules, crops, masks, colour spaces.

Pure functions on arrays. Rules of the depth data sets: Marigold (2312.02145), section 4.1 and its released evaluation.
"""

from __future__ import annotations

import numpy as np

from utils.maps.known import known_pixels
from utils.metrics.depth_rules import DEPTH_RULES

KITTI_CROP = (352, 1216)


def depth_valid(gt: np.ndarray, protocol: str, mask: np.ndarray | None = None) -> np.ndarray:
    """Pixels of a depth map (H, W), metres, that `protocol` scores: bool (H, W).

    Always known (`known_pixels`), and inside `mask` if there is one; by protocol also inside the open depth range
    and the crop of the evaluation: NYUv2 rows 45:471 and columns 41:601 of 480 x 640, KITTI the Eigen crop of the
    benchmark crop.
    Raises ValueError for an NYUv2 map of another size.
    """
    rule = DEPTH_RULES[protocol]
    valid = known_pixels("depth", gt, mask).pixels
    if rule.in_range:
        valid &= (gt > rule.min_depth) & (gt < rule.max_depth)
    crop: slice | tuple[slice, slice] = np.s_[:]
    if protocol == "nyuv2":
        if gt.shape != (480, 640):
            size = f"{gt.shape[0]}x{gt.shape[1]}"
            raise ValueError(f"is {size}, but the crop of --protocol nyuv2 is for 480x640: use --protocol plain")
        crop = np.s_[45:471, 41:601]
    elif protocol == "kitti":
        height, width = gt.shape
        rows = slice(int(0.3324324 * height), int(0.91351351 * height))
        crop = rows, slice(int(0.0359477 * width), int(0.96405229 * width))
    inside = np.zeros_like(valid)
    inside[crop] = True
    return valid & inside


def kitti_window(shape: tuple[int, int]) -> tuple[slice, slice]:
    """The bottom centre 352 x 1216 of a picture of `shape`: KITTI's own benchmark crop. ValueError if smaller."""
    height, width = KITTI_CROP
    if shape[0] < height or shape[1] < width:
        raise ValueError(f"is {shape[0]}x{shape[1]}, smaller than KITTI's crop of 352x1216: use --protocol plain")
    left = (shape[1] - width) // 2
    return slice(shape[0] - height, shape[0]), slice(left, left + width)


def center_window(shape: tuple[int, int]) -> tuple[slice, slice]:
    """The centre square of a picture of `shape`."""
    side = min(shape)
    top, left = ((length - side) // 2 for length in shape)
    return slice(top, top + side), slice(left, left + side)


def erode(valid: np.ndarray, radius: int) -> np.ndarray:
    """Pixels (H, W) whose whole square neighbourhood of `radius` pixels is valid; beyond the image counts as valid."""
    valid = np.pad(valid, radius, constant_values=True)
    for axis in (0, 1):
        size = valid.shape[axis] - 2 * radius
        valid = np.all([valid.take(range(k, k + size), axis) for k in range(2 * radius + 1)], axis=0)
    return valid
