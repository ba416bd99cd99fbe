"""What one drawn map scores against its ground truth: a script picks its task's function for validation.

Each takes the drawing (3,H,W), not clamped, the data set's gt (C,H,W) and valid (1,H,W), and returns the metrics of
that image (utils/metrics.py), or None where no pixel is valid.
"""

import numpy as np
from torch import Tensor

from utils.metrics import angular_error, depth_metrics, normal_metrics
from utils.protocols import DEPTH_RULES


def score_normals(drawn: Tensor, gt: Tensor, valid: Tensor) -> dict[str, float] | None:
    """Angles in degrees between the drawn normals and gt, both in the label's frame.

    A vector of length zero points nowhere and counts as 90 degrees off.
    """
    valid = valid[0].numpy()
    if not valid.any():
        return None
    angles = angular_error(drawn.permute(1, 2, 0).numpy()[valid], gt.permute(1, 2, 0).numpy()[valid])
    return normal_metrics(np.nan_to_num(angles, nan=90.0))


def score_depth(drawn: Tensor, gt: Tensor, valid: Tensor) -> dict[str, float] | None:
    """Affine-invariant depth errors of the mean over channels, on DIODE's range; gt (1,H,W) in metres."""
    valid = valid[0].numpy()
    if not valid.any():
        return None
    rule = DEPTH_RULES["diode"]
    return depth_metrics(drawn.mean(0).numpy(), gt[0].numpy(), valid, "depth", rule.min_depth, rule.max_depth)
