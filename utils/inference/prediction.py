"""One map of one image, and what its numbers mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.intrinsics import Intrinsic
from utils.kinds.evidence import placed, placement_findings


@dataclass(frozen=True)
class Prediction:
    """A predicted map, usable as an array: `np.asarray(prediction)` is `prediction.values`.

    map: as the network predicts it, (3,H,W) about [-1,1], not clamped. uncertainty: (H,W), of ensembles only; degrees
    for normals, else units of the map. facts: of base and LoRA, for the files' metadata.
    """

    intrinsic: Intrinsic
    map: Tensor
    uncertainty: Tensor | None = None
    facts: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def values(self) -> np.ndarray:
        """float32. Normals: unit vectors (H,W,3). Depth: (H,W). Colours: (H,W,3), about [0,1], not clamped."""
        return self.intrinsic.map_kind.values(self.map)

    @property
    def image(self) -> np.ndarray:
        """uint8 (H,W,3), depth (H,W), as the released script writes it."""
        return self.intrinsic.map_kind.image8(self.map)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return tuple(self.map.shape[1:])

    @property
    def frame(self) -> str | None:
        """The axes of normals; None for other maps."""
        return self._convention("frame")

    @property
    def polarity(self) -> str | None:
        """Which end of depth is near; None for other maps."""
        return self._convention("polarity")

    @property
    def colour_space(self) -> str | None:
        """The coding of albedo and shading; None for other maps."""
        return self._convention("colour_space")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values if dtype is None else self.values.astype(dtype)

    def _convention(self, key: str) -> str | None:
        return self.intrinsic.convention[1] if self.intrinsic.convention[0] == key else None


def check_conventions(
    predictions: Prediction | Sequence[Prediction],
    truths: np.ndarray | Sequence[np.ndarray],
    known: np.ndarray | Sequence[np.ndarray] | None = None,
) -> list[str]:
    """Other conventions that fit predictions of one intrinsic and their truth much better, a line each; often [].

    truths: in this project's conventions. Normals (H,W,3), x right, y down, z forward; depth (H,W) in metres, > 0
    where known; colours (H,W,3), linear. known: bool (H,W) for each, where the truth is measured (default:
    everywhere). More images make the answer surer; see `utils.kinds.evidence`.
    """
    if isinstance(predictions, Prediction):
        predictions, truths = [predictions], [np.asarray(truths)]
        known = None if known is None else [np.asarray(known)]
    if len({one.intrinsic.name for one in predictions}) != 1 or len(predictions) != len(truths):
        raise InputError(f"check_conventions: {len(predictions)} predictions of one intrinsic need as many truths")
    places = [None] * len(predictions) if known is None else known
    triples = list(zip([one.values for one in predictions], truths, places, strict=True))
    intrinsic = predictions[0].intrinsic
    fit = intrinsic.map_kind.placement_fit(intrinsic.coding)
    lie = (
        [placed(fit, np.atleast_3d(one), np.atleast_3d(truth), _known(truth, where)) for one, truth, where in triples]
        if fit
        else []
    )
    found = placement_findings(lie, fit, intrinsic.map_kind.value_findings(triples))
    fix = "the truth has another convention than this function takes, or the labels of the LoRA's training had one"
    if found and found[0].key[0] in ("placed", "paired"):
        fix = "pass each truth with the prediction of its own image, neither flipped nor turned"
    return [one.text(f"the predicted {intrinsic.name} maps", fix) for one in found]


def _known(truth: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    return np.ones(np.shape(truth)[:2], bool) if known is None else known


def merge_batches(members: Sequence[Tensor], intrinsic: Intrinsic) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """Predictions (B,3,H,W) of the same images, one per member -> maps, uncertainties; None each of one member."""
    if len(members) == 1:
        return list(members[0]), [None] * len(members[0])
    merged = [intrinsic.map_kind.merge(torch.stack(each)) for each in zip(*members, strict=True)]
    return [one for one, _ in merged], [uncertainty for _, uncertainty in merged]


def uncertainty_picture(uncertainty: Tensor, intrinsic: Intrinsic) -> np.ndarray:
    """Uncertainty (H,W) -> uint8 (H,W): black = none, white = 45 degrees, or 0.5 of other units, or more."""
    return (uncertainty / intrinsic.map_kind.uncertain).clamp(0, 1).mul(255).round().byte().numpy()
