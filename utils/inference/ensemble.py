"""Several predictions of one image as one map and an uncertainty: each member began with other noise."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.intrinsics import Intrinsic


def merge_batches(members: Sequence[Tensor], intrinsic: Intrinsic) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """Predictions (B,3,H,W) of the same images, one per member -> maps, uncertainties; None each of one member."""
    if len(members) == 1:
        return list(members[0]), [None] * len(members[0])
    merged = [intrinsic.map_kind.merge(torch.stack(each)) for each in zip(*members, strict=True)]
    return [one for one, _ in merged], [uncertainty for _, uncertainty in merged]


def uncertainty_picture(uncertainty: Tensor, intrinsic: Intrinsic) -> np.ndarray:
    """Uncertainty (H,W) -> uint8 (H,W): black = none, white = 45 degrees, or 0.5 of other units, or more."""
    return (uncertainty / intrinsic.map_kind.uncertain).clamp(0, 1).mul(255).round().byte().numpy()
