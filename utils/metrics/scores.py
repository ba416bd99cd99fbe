"""What one drawn map scores against its ground truth: a script picks its task's function for validation.

Each takes the drawing (3,H,W), not clamped, the data set's gt (C,H,W) and valid (1,H,W), and returns the metrics of
that image (utils/metrics/), or None where no pixel is valid.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import Tensor

from utils.maps.conventions import to_linear
from utils.metrics.colour import albedo_metrics
from utils.metrics.depth import depth_metrics
from utils.metrics.normals import angular_error, normal_metrics
from utils.metrics.protocols import DEPTH_RULES

Score = Callable[[Tensor, Tensor, Tensor], dict[str, float] | None]


def score_normals(drawn: Tensor, gt: Tensor, valid: Tensor) -> dict[str, float] | None:
    """Angles in degrees between the drawn normals and gt, both in the label's frame.

    A vector of length zero points nowhere and counts as 90 degrees off.
    """
    valid = valid[0].numpy()
    if not valid.any():
        return None
    angles = angular_error(drawn.permute(1, 2, 0).numpy()[valid], gt.permute(1, 2, 0).numpy()[valid])
    return normal_metrics(np.nan_to_num(angles, nan=90.0))


def score_depth(drawn: Tensor, gt: Tensor, valid: Tensor, protocol: str = "diode") -> dict[str, float] | None:
    """Affine-invariant depth errors of the mean over channels, on `protocol`'s range; gt (1,H,W) in metres."""
    valid = valid[0].numpy()
    if not valid.any():
        return None
    rule = DEPTH_RULES[protocol]
    return depth_metrics(drawn.mean(0).numpy(), gt[0].numpy(), valid, "depth", rule.min_depth, rule.max_depth)


def score_colour(drawn: Tensor, gt: Tensor, valid: Tensor) -> dict[str, float] | None:
    """Errors of albedo or shading after one scale, in linear light; the drawing is sRGB-coded in [-1,1], clamped.

    gt (3,H,W) linear. As in `evaluate.py --pred_space srgb --gt_space linear`, an image with too little truth to
    score (no valid pixel 5 from the border, or all black) is left out: None.
    """
    coded = np.nan_to_num(drawn.clamp(-1, 1).permute(1, 2, 0).double().numpy(), nan=-1.0) / 2 + 0.5
    try:
        return albedo_metrics(to_linear(coded), gt.permute(1, 2, 0).numpy(), valid[0].numpy())
    except ValueError:
        return None


def against_label(score: Score) -> Score:
    """`score` where gt is no measurement but the decoded label: every metric's name begins with label_."""

    def renamed(drawn: Tensor, gt: Tensor, valid: Tensor) -> dict[str, float] | None:
        scores = score(drawn, gt, valid)
        return None if scores is None else {f"label_{name}": value for name, value in scores.items()}

    renamed.__doc__ = f"Against the label, which is no measurement: {described(score)}"
    return renamed


def described(score: Score) -> str:
    """What `score` measures, in one line: the first paragraph of its docstring, and what a `partial` has settled."""
    function, settled = (score.func, score.keywords) if isinstance(score, partial) else (score, {})
    text = " ".join(function.__doc__.split("\n\n")[0].split())
    return text + "".join(f" ({name}: {value})" for name, value in settled.items())
