"""Reads one image's truth and prediction, and brings both into one frame, size and colour space."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.evaluation.pairing import Pair
from utils.evaluation.rules import GroundTruthError, PredictionError, Rules
from utils.maps.conventions import convert_frame, convert_space, unit_vectors
from utils.maps.files import read_prediction, read_truth, resize
from utils.metrics.protocols import center_window, depth_valid, kitti_window


class Truth(NamedTuple):
    """Ground truth of one image: normals (H, W, 3) in opencv axes, depth (H, W) in metres, or colour; valid (H, W).

    full: (height, width) of its file; window: the part of the file that was kept, as two slices. unknown: reason ->
    pixels of the file that have no value.
    """

    gt: np.ndarray
    valid: np.ndarray
    full: tuple[int, int]
    window: tuple[slice, slice]
    unknown: Mapping[str, int]


def load_truth(pair: Pair, rules: Rules) -> Truth:
    """The ground truth of one image under `rules`, cropped as they say. GroundTruthError names the file."""
    if pair.gt is None:
        raise GroundTruthError(f"{pair.name}: no ground truth")
    try:
        read = read_truth(pair.gt, rules.intrinsic.kind, pair.mask, rules.gt_depth_scale)
    except InputError as error:
        raise GroundTruthError(str(error)) from error
    gt, valid = read.values, read.known
    if rules.intrinsic.kind == "normals":
        gt = convert_frame(gt, rules.gt_frame)
    elif rules.intrinsic.kind == "colour":
        gt = convert_space(gt, stored_space(pair.gt, rules.gt_space), rules.gt_space)
    full = valid.shape
    window = np.s_[0 : full[0], 0 : full[1]]
    if rules.intrinsic.kind == "depth":
        try:
            if rules.protocol == "kitti":
                window = kitti_window(full)
            inside = np.zeros(full, bool)
            inside[window] = depth_valid(gt[window], rules.protocol, valid[window])
            valid = inside
        except ValueError as error:
            raise GroundTruthError(f"{pair.gt}: {error}") from error
    if rules.center_crop:
        window = center_window(full)
    return Truth(gt[window], valid[window], full, window, read.unknown)


def load_prediction(pair: Pair, rules: Rules, truth: Truth | None) -> tuple[np.ndarray, bool]:
    """(prediction in the ground truth's frame, size, channels and colour space; was its shape distorted for that?).

    truth: None (colour only) leaves size and channels as they are. PredictionError names the file.
    """
    if pair.prediction is None:
        raise PredictionError(f"{pair.name}: no prediction")
    try:
        pred = read_prediction(pair.prediction, rules.intrinsic.kind).values
    except InputError as error:
        raise PredictionError(str(error)) from error
    if rules.intrinsic.kind == "normals":
        pred = convert_frame(pred, rules.pred_frame)
    elif rules.intrinsic.kind == "colour":
        pred = convert_space(pred, stored_space(pair.prediction, rules.pred_space), rules.gt_space)
    if truth is None:
        return (pred if pred.ndim == 3 else pred[..., None]), False
    if rules.intrinsic.kind == "normals" and pred.shape[:2] not in (truth.gt.shape[:2], truth.full):
        pred = unit_vectors(pred)  # so that no long vector outweighs its neighbours in the resize
    elif rules.intrinsic.kind == "colour":
        if pred.ndim == 3 and truth.gt.ndim == 2:
            pred = pred.mean(axis=2)
        elif pred.ndim == 2 and truth.gt.ndim == 3:
            raise PredictionError(f"{pair.prediction}: is grey, but {pair.gt} has colours: predict 3 channels")
    return fit_to(pred, truth)


def fit_to(pred: np.ndarray, truth: Truth) -> tuple[np.ndarray, bool]:
    """(pred in the size of `truth.gt`, was it distorted?).

    A prediction shows either what was kept of the ground truth or its whole picture: the one whose proportions are
    nearer. It is resized to that (bilinear, antialiased when shrinking) and, of the whole, the window is kept.
    Distorted means that neither has its proportions to within 2 %.
    """
    kept, shape = truth.gt.shape[:2], pred.shape[:2]
    if shape == kept:
        return pred, False
    kept_off, full_off = (abs(np.log(shape[1] / shape[0] * size[0] / size[1])) for size in (kept, truth.full))
    if shape == truth.full or full_off < kept_off:
        whole = pred if shape == truth.full else resize(pred, truth.full)
        return whole[truth.window], full_off > 0.02
    return resize(pred, kept), kept_off > 0.02


def stored_space(path: Path, stated: str) -> str:
    """The space of a colour's numbers: `stated` by the flag; OpenEXR holds linear light whatever the flag."""
    return "linear" if path.suffix.lower() == ".exr" else stated
