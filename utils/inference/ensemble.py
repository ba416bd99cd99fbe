"""Several predictions of one image into one map and an uncertainty: each member began with other noise."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from utils.intrinsics import Intrinsic
from utils.maps.pictures import unit_normals

WHITE_DEGREES, WHITE = 45.0, 0.5  # the uncertainty that a picture shows as white: of normals, of all else
ROUNDS = 10  # of alignment; the members' scales settle in two or three


def merge(predictions: Tensor, intrinsic: Intrinsic) -> tuple[Tensor, Tensor]:
    """Predictions (N,3,H,W) of one image, not clamped -> (map (3,H,W), uncertainty (H,W)), both float32 on the CPU.

    Normals: the mean direction; uncertainty is the members' mean angle to it, in degrees.
    Depth: mean over channels, each member aligned by scale and shift, then the median; uncertainty is the median
    absolute deviation, in units of the map.
    Colours: the median of each channel; uncertainty is the channels' mean median absolute deviation.

    A member that went astray moves a median not at all, as long as it has company of more than its own kind.
    """
    predictions = predictions.float().cpu()
    if intrinsic.kind == "normals":
        return merge_normals(predictions)
    if intrinsic.kind == "depth":
        predictions = align(predictions.mean(1))[:, None]
    merged = _median(predictions)
    uncertainty = _median((predictions - merged).abs()).mean(0)
    return merged.expand(3, -1, -1).clone(), uncertainty


def merge_batches(members: Sequence[Tensor], intrinsic: Intrinsic) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """Predictions (B,3,H,W) of the same images, one per member -> maps, uncertainties; None each of one member."""
    if len(members) == 1:
        return list(members[0]), [None] * len(members[0])
    merged = [merge(torch.stack(each), intrinsic) for each in zip(*members, strict=True)]
    return [one for one, _ in merged], [uncertainty for _, uncertainty in merged]


def merge_normals(predictions: Tensor) -> tuple[Tensor, Tensor]:
    """(N,3,H,W) -> (unit mean direction (3,H,W), mean angle to it (H,W) in degrees)."""
    members = torch.stack([unit_normals(one) for one in predictions])
    merged = normalize(members.sum(0), dim=0, eps=1e-12)
    # by sine and cosine: acos alone turns rounding near 0 into hundredths of a degree
    sine = torch.linalg.cross(members, merged.expand_as(members), dim=1).norm(dim=1)
    angles = torch.rad2deg(torch.atan2(sine, (members * merged).sum(1)))
    return merged, angles.mean(0)


def align(members: Tensor) -> Tensor:
    """Depths (N,H,W), each known up to scale and shift -> the same on one scale and shift.

    Least squares to the members' median, which moves with them, until it rests. The common scale and shift are then
    the members' own on average. A member that runs against the others gets scale 0: it is in error, not inverted.
    """
    flat = members.double().flatten(1)
    mean, spread = flat.mean(1).mean(), flat.std(1).mean()
    flat = flat - flat.mean(1, keepdim=True)
    flat = flat / flat.std(1, keepdim=True).clamp(min=1e-12)
    power = flat.square().mean(1, keepdim=True).clamp(min=1e-12)
    target = _median(flat)
    for _ in range(ROUNDS):
        target = target - target.mean()
        target = target / target.std().clamp(min=1e-12)
        scale = ((flat * target).mean(1, keepdim=True) / power).clamp(min=0)
        target = _median(scale * flat)
    return (scale * flat / target.std().clamp(min=1e-12) * spread + mean).reshape(members.shape).float()


def uncertainty_picture(uncertainty: Tensor, intrinsic: Intrinsic) -> np.ndarray:
    """Uncertainty (H,W) -> uint8 (H,W): black = none, white = 45 degrees, or 0.5 of other units, or more."""
    white = WHITE_DEGREES if intrinsic.kind == "normals" else WHITE
    return (uncertainty / white).clamp(0, 1).mul(255).round().byte().numpy()


def _median(members: Tensor) -> Tensor:
    """Over the first axis; of an even number the mean of the middle two (torch.median would take the lower)."""
    ordered, n = members.sort(0)[0], len(members)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
