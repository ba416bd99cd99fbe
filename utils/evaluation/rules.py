"""What decides a score besides the files, and how scoring one image can fail."""

from typing import NamedTuple

from utils.intrinsics import Intrinsic


class Rules(NamedTuple):
    """Everything that decides a score besides the files. Names and values are those of the command line."""

    intrinsic: Intrinsic
    protocol: str
    pred_frame: str = "opencv"
    gt_frame: str = "opencv"
    align: str = "depth"
    gt_depth_scale: float | None = None
    pred_space: str = "srgb"
    gt_space: str = "srgb"
    center_crop: bool = False


class GroundTruthError(ValueError):
    """A ground truth or mask that cannot be used: never excused, the message names the file."""


class PredictionError(ValueError):
    """A prediction that is missing or cannot be scored: the message names the file."""


class NothingToScore(ValueError):
    """An image without enough valid ground truth: left out and counted."""
