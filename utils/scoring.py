"""Scores one image: reads its files, brings both sides into one frame, size and colour space, calls the metrics."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import maps, metrics
from utils.aggregation import ANGLE_BINS, ImageScore, angle_bins
from utils.pairing import Pair
from utils.protocols import (
    DEPTH_RULES,
    KITTI_CROP,
    convert_frame,
    convert_space,
    depth_valid,
    erode,
    kitti_benchmark_crop,
)

RELATIVE_BINS = 1001  # depth and colour errors: bins of 0.001, the last holds everything from 1 up
AXIS_FLIPS = list(itertools.product((1.0, -1.0), repeat=3))
FLIP_SAMPLES = 2048  # pixels per image that the frame check looks at


class Rules(NamedTuple):
    """Everything that decides a score besides the files. Names and values are those of the command line."""

    task: str
    protocol: str
    pred_frame: str = "opencv"
    gt_frame: str = "opencv"
    align: str = "depth"
    gt_depth_scale: float | None = None
    pred_space: str = "srgb"
    gt_space: str = "srgb"


class GroundTruthError(ValueError):
    """A ground truth or mask that cannot be used: never excused, the message names the file."""


class PredictionError(ValueError):
    """A prediction that is missing or cannot be scored: the message names the file."""


class NothingToScore(ValueError):
    """An image without enough valid ground truth: left out and counted."""


def load_truth(pair: Pair, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """(gt, valid) of one image under `rules`: normals (H, W, 3) in opencv axes, depth (H, W) in metres, or colour.

    valid: bool (H, W). Raises GroundTruthError with the file's name.
    """
    mask = None if pair.mask is None else _read(maps.read_mask, pair.mask, GroundTruthError)
    if rules.task == "normal":
        gt, valid = _read(maps.read_normals, pair.gt, GroundTruthError)
        gt = convert_frame(gt, rules.gt_frame)
    elif rules.task == "depth":
        gt = _read(maps.read_metric_depth, pair.gt, GroundTruthError, rules.gt_depth_scale)
        valid = np.ones(gt.shape, bool)
    else:
        gt = _read(maps.read_colour, pair.gt, GroundTruthError)
        valid = np.isfinite(gt) if gt.ndim == 2 else np.isfinite(gt).all(axis=2)
    if mask is not None:
        if mask.shape != valid.shape:
            raise GroundTruthError(f"{pair.mask}: mask of shape {mask.shape} does not fit {pair.gt}, {valid.shape}")
        valid = valid & mask
    if rules.task == "depth":
        try:
            if rules.protocol == "kitti":
                gt, valid = kitti_benchmark_crop(gt), kitti_benchmark_crop(valid)
            valid = depth_valid(gt, rules.protocol, valid)
        except ValueError as error:
            raise GroundTruthError(f"{pair.gt}: {error}") from error
    return gt, valid


def load_prediction(pair: Pair, rules: Rules, gt: np.ndarray | None) -> np.ndarray:
    """The prediction of one image in the ground truth's frame, size, channels and colour space.

    gt: None (colour only) leaves size and channels as they are. Another size is resized: bilinear, antialiased when
    shrinking. Raises PredictionError with the file's name.
    """
    shape = None if gt is None else gt.shape[:2]
    if rules.task == "normal":
        pred, _ = _read(maps.read_normals, pair.prediction, PredictionError)
        pred = convert_frame(pred, rules.pred_frame)
        return pred if pred.shape[:2] == shape else maps.resize(metrics.unit_vectors(pred), shape)
    if rules.task == "depth":
        pred = _read(maps.read_depth, pair.prediction, PredictionError)
        if rules.protocol == "kitti" and pred.shape != KITTI_CROP:
            full = maps.read_array(pair.gt).shape  # a prediction of the whole picture: crop it as the truth was
            return kitti_benchmark_crop(pred if pred.shape == full else maps.resize(pred, full))
        return pred if pred.shape == shape else maps.resize(pred, shape)
    pred = _read(maps.read_colour, pair.prediction, PredictionError)
    pred = convert_space(pred, rules.pred_space, rules.gt_space)
    if gt is None:
        return pred if pred.ndim == 3 else pred[..., None]
    if pred.ndim == 3 and gt.ndim == 2:
        pred = pred.mean(axis=2)
    elif pred.ndim == 2 and gt.ndim == 3:
        raise PredictionError(f"{pair.prediction}: is grey, but {pair.gt} has colours: predict 3 channels")
    return pred if pred.shape[:2] == shape else maps.resize(pred, shape)


def score(pair: Pair, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> ImageScore:
    """The metrics of one image and its histogram of errors.

    Raises NothingToScore when too little ground truth is valid, PredictionError when the prediction has no value on
    a pixel that counts: leaving such pixels out would flatter it.
    """
    pixels = int(np.count_nonzero(valid))
    if pixels == 0:
        raise NothingToScore("no valid pixel")
    if rules.task == "normal":
        values, angles, flips = _score_normals(pair, pred, gt, valid)
        errors = np.bincount(angle_bins(angles), minlength=ANGLE_BINS)
    else:
        _reject(pair, ~np.isfinite(pred[valid]), "NaN or inf")
        angles = flips = None
        try:
            values, errors = (_score_depth if rules.task == "depth" else _score_colour)(pred, gt, valid, rules)
        except ValueError as error:
            raise NothingToScore(str(error)) from error
        errors = np.bincount(np.minimum(errors * 1000, RELATIVE_BINS - 1).astype(int), minlength=RELATIVE_BINS)
    return ImageScore(pair.name, pair.scene_type, pixels, valid.shape, values, errors.astype(np.uint32), angles, flips)


def compare(pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """(prediction as it was scored, error map (H, W)): degrees for normals, |p - g| / g for depth, else mean |p - g|.

    Values outside `valid` mean nothing.
    """
    if rules.task == "normal":
        return pred, metrics.angular_error(pred, gt)
    if rules.task == "depth":
        rule = DEPTH_RULES[rules.protocol]
        aligned = metrics.align_depth(pred, gt, valid, rules.align, rule.min_depth, rule.max_depth, rule.fit_side)
        return aligned, np.abs(aligned - gt) / np.where(valid, gt, 1)
    scaled = metrics.align_scale(pred, gt, valid) * np.asarray(pred, np.float64)
    error = np.abs(scaled - gt)
    return scaled, error if error.ndim == 2 else error.mean(axis=2)


def score_pair(
    pair: Pair, rules: Rules, radius: int = 0, judgements: Path | None = None, constant: np.ndarray | None = None
) -> tuple[ImageScore, ImageScore | None]:
    """(score of one image, score with its mask eroded by `radius` or None when nothing is left or asked for).

    judgements: IIW file that adds `whdr`, and is all there is to score without a ground truth.
    constant: scored in the prediction's place, one number or one per channel, in the frame and space of the truth.
    Raises GroundTruthError, PredictionError or NothingToScore.
    """
    if pair.prediction is None:
        raise PredictionError(f"{pair.name}: no prediction")
    if pair.gt is None and judgements is None:
        raise NothingToScore("no judgements")
    gt, valid = (None, None) if pair.gt is None else load_truth(pair, rules)
    if valid is not None and not valid.any():
        raise NothingToScore("no valid pixel")
    if constant is None or gt is None:
        pred = load_prediction(pair, rules, gt)
    if constant is not None:
        pred = np.broadcast_to(constant, (pred if gt is None else gt).shape)
    if gt is None:
        plain, shrunk = ImageScore(pair.name, pair.scene_type, pred[..., 0].size, pred.shape[:2], {}), None
    else:
        plain, shrunk = score(pair, pred, gt, valid, rules), None
        if radius:
            try:
                shrunk = score(pair, pred, gt, erode(valid, radius), rules)
            except NothingToScore:
                shrunk = None  # the row of eroded masks states how many images it holds
    if judgements is not None:
        plain.metrics["whdr"] = _score_judgements(pair, pred, judgements, rules)
    return plain, shrunk


def truth_sum(pair: Pair, rules: Rules) -> tuple[np.ndarray, int]:
    """(sum of the valid ground truth, pixels): unit normals (3,), or colour (3,) or grey () as stored."""
    gt, valid = load_truth(pair, rules)
    values = metrics.unit_vectors(gt[valid]) if rules.task == "normal" else gt[valid]
    return values.sum(axis=0), len(values)


def _score_normals(
    pair: Pair, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """(metrics, float32 angles of the valid pixels, mean error of a sample after each of the AXIS_FLIPS)."""
    pred, gt = pred.reshape(-1, 3), gt.reshape(-1, 3)
    if not valid.all():
        chosen = np.flatnonzero(valid)  # five times faster than indexing rows with a mask
        pred, gt = pred.take(chosen, axis=0), gt.take(chosen, axis=0)
    angles = metrics.angular_error(pred, gt)
    _reject(pair, np.isnan(angles), "NaN, inf or the zero vector")
    step = -(-len(gt) // FLIP_SAMPLES)
    sample, truth = pred[::step], gt[::step]
    flips = np.array([metrics.angular_error(sample * np.array(signs), truth).mean() for signs in AXIS_FLIPS])
    return metrics.normal_metrics(angles), angles.astype(np.float32), flips


def _score_depth(
    pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules
) -> tuple[dict[str, float], np.ndarray]:
    """(metrics, relative errors of the valid pixels)."""
    if np.count_nonzero(valid) < 3:
        raise ValueError("fewer than 3 valid pixels: scale and shift would fit them perfectly")
    rule = DEPTH_RULES[rules.protocol]
    values = metrics.depth_metrics(pred, gt, valid, rules.align, rule.min_depth, rule.max_depth, rule.fit_side)
    return values, compare(pred, gt, valid, rules)[1][valid]


def _score_colour(
    pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules
) -> tuple[dict[str, float], np.ndarray]:
    """(metrics, mean absolute errors of the valid pixels)."""
    return metrics.albedo_metrics(pred, gt, valid), compare(pred, gt, valid, rules)[1][valid]


def _score_judgements(pair: Pair, pred: np.ndarray, path: Path, rules: Rules) -> float:
    """WHDR of one albedo prediction (H, W) or (H, W, 3) in `rules.gt_space`."""
    _reject(pair, ~np.isfinite(pred), "NaN or inf")
    try:
        return metrics.whdr(convert_space(pred, rules.gt_space, "linear"), json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise GroundTruthError(f"{path}: {error}") from error


def _reject(pair: Pair, bad: np.ndarray, what: str) -> None:
    if bad.any():
        name = pair.prediction or pair.name
        raise PredictionError(f"{name}: {what} on {np.count_nonzero(bad)} of {bad.size} scored values")


def _read(reader, path: Path, kind: type[ValueError], *rest):
    """reader(path, *rest), its ValueError turned into `kind` with the file's name."""
    try:
        return reader(path, *rest)
    except ValueError as error:
        raise kind(f"{path}: {error}") from error
