"""What one prediction scores against its ground truth, in validation.

Each function takes the prediction (3,H,W), not clamped, the data set's gt (C,H,W) and valid (1,H,W), and returns the
metrics of that image (utils/metrics/), or None where no pixel is valid.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from utils.intrinsics import Intrinsic
from utils.maps.conventions import to_linear
from utils.metrics.colour import albedo_metrics
from utils.metrics.depth import depth_metrics
from utils.metrics.normals import angular_error, normal_metrics
from utils.metrics.protocols import DEPTH_RULES

Score = Callable[[Tensor, Tensor, Tensor], dict[str, float] | None]


def score_of(intrinsic: Intrinsic, protocol: str = "plain") -> Score:
    """The function that scores this intrinsic; `protocol` names a depth data set's rules (DEPTH_RULES)."""
    if intrinsic.kind == "normals":
        return score_normals
    if intrinsic.kind == "depth":
        return partial(score_depth, protocol=protocol)
    return score_colour if intrinsic.coding == "srgb" else partial(score_colour, coding=intrinsic.coding)


def score_normals(prediction: Tensor, gt: Tensor, valid: Tensor) -> dict[str, float] | None:
    """Angles in degrees between the predicted normals and gt, both in the label's frame.

    A vector of length zero points nowhere and counts as 90 degrees off.
    """
    valid = valid[0].numpy()
    if not valid.any():
        return None
    angles = angular_error(prediction.permute(1, 2, 0).numpy()[valid], gt.permute(1, 2, 0).numpy()[valid])
    return normal_metrics(np.nan_to_num(angles, nan=90.0))


def score_depth(prediction: Tensor, gt: Tensor, valid: Tensor, protocol: str = "diode") -> dict[str, float] | None:
    """Affine-invariant depth errors of the mean over channels, on `protocol`'s range; gt (1,H,W) in metres."""
    valid = valid[0].numpy()
    if not valid.any():
        return None
    rule = DEPTH_RULES[protocol]
    return depth_metrics(prediction.mean(0).numpy(), gt[0].numpy(), valid, "depth", rule.min_depth, rule.max_depth)


def score_colour(prediction: Tensor, gt: Tensor, valid: Tensor, coding: str = "srgb") -> dict[str, float] | None:
    """Errors after one scale, in linear light; the prediction is coded in [-1,1], clamped.

    gt (3,H,W) linear. As in `evaluate.py --pred_space srgb --gt_space linear`, an image with too little truth to
    score (no valid pixel 5 from the border, or all black) is left out: None.
    """
    coded = np.nan_to_num(prediction.clamp(-1, 1).permute(1, 2, 0).double().numpy(), nan=-1.0) / 2 + 0.5
    linear = to_linear(coded) if coding == "srgb" else coded
    try:
        return albedo_metrics(linear, gt.permute(1, 2, 0).numpy(), valid[0].numpy())
    except ValueError:
        return None


def against_label(score: Score) -> Score:
    """`score` where gt is no measurement but the decoded label: every metric's name begins with label_."""

    def renamed(prediction: Tensor, gt: Tensor, valid: Tensor) -> dict[str, float] | None:
        scores = score(prediction, gt, valid)
        return None if scores is None else {f"label_{name}": value for name, value in scores.items()}

    renamed.__doc__ = f"Against the label, which is no measurement: {described(score)}"
    return renamed


def label_as_truth(intrinsic: Intrinsic, target: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A label (3,R,R) in [-1,1], decoded to the unit of gt, and valid (1,R,R).

    known: bool (1,R,R), where the label has a value; None: everywhere. Normals: unit vectors. Colours: linear. Depth:
    nothing is valid, because a label has no metres.
    """
    valid = torch.ones_like(target[:1], dtype=torch.bool) if known is None else known
    if intrinsic.kind == "depth":
        return torch.zeros_like(target[:1]), torch.zeros_like(valid)
    if intrinsic.kind == "normals":
        return normalize(target, dim=0, eps=1e-12), valid
    values = target.double().numpy() / 2 + 0.5
    return torch.from_numpy(to_linear(values) if intrinsic.coding == "srgb" else values).float(), valid


def described(score: Score) -> str:
    """What `score` measures, in one line: the first paragraph of its docstring, and what a `partial` has settled."""
    function, settled = (score.func, score.keywords) if isinstance(score, partial) else (score, {})
    text = " ".join((function.__doc__ or "").split("\n\n")[0].split())
    return text + "".join(f" ({name}: {value})" for name, value in settled.items())
