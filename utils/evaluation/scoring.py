"""Reads one image's truth and prediction, brings both into one frame, size and colour space, and scores them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.evaluation.aggregation import ImageScore
from utils.evaluation.pairs import Pair
from utils.image_io.colour_space import convert_space
from utils.image_io.files import resize
from utils.kinds.base import NOT_FINITE, OUTSIDE, Map, NoValueError, Rules, require_values
from utils.kinds.colour import whdr
from utils.kinds.evidence import PIXELS, Fit, placed
from utils.system.atomic import json_object


class GroundTruthError(ValueError):
    """A ground truth or mask that cannot be used: never excused, the message names the file."""


class PredictionError(ValueError):
    """A prediction that is missing or cannot be scored: the message names the file."""


class NothingToScore(ValueError):
    """An image without enough valid ground truth: left out and counted."""


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
    """The ground truth of one image under `rules`, cropped as they require. GroundTruthError names the file."""
    if pair.gt is None:
        raise GroundTruthError(f"{pair.name}: no ground truth")
    try:
        read = rules.kind.read_truth(pair.gt, pair.mask, rules.gt_depth_scale)
    except InputError as error:
        raise GroundTruthError(str(error)) from error
    return truth_of(read, pair.gt, rules)


def truth_of(read: Map, path: Path, rules: Rules) -> Truth:
    """A map of ground truth under `rules`, cropped as they require. path: its file, which GroundTruthError names."""
    gt, full = rules.kind.truth_values(read.values, path, rules), read.known.shape
    try:
        window, valid = rules.kind.scored_pixels(gt, read.known, rules)
    except ValueError as error:
        raise GroundTruthError(f"{path}: {error}") from error
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
        pred = rules.kind.read_prediction(pair.prediction).values
    except InputError as error:
        raise PredictionError(str(error)) from error
    return prediction_of(pred, pair.prediction, rules, truth)


def prediction_of(pred: np.ndarray, path: Path, rules: Rules, truth: Truth | None) -> tuple[np.ndarray, bool]:
    """`load_prediction` of values that were read, or predicted. path: their file, which PredictionError names."""
    pred = rules.kind.prediction_values(pred, path, rules)
    if truth is None:
        return (pred if pred.ndim == 3 else pred[..., None]), False
    try:
        pred = rules.kind.fitted(pred, truth.gt, pred.shape[:2] not in (truth.gt.shape[:2], truth.full))
    except ValueError as error:
        raise PredictionError(f"{path}: {error}") from error
    return fit_to(pred, truth)


def fit_to(pred: np.ndarray, truth: Truth) -> tuple[np.ndarray, bool]:
    """(pred in the size of `truth.gt`, was it distorted?).

    A prediction shows either what was kept of the ground truth or the whole image: the one whose proportions are
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


def center_window(shape: tuple[int, int]) -> tuple[slice, slice]:
    """The centre square of an image of `shape`."""
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


def score(
    pair: Pair, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules, distorted: bool
) -> ImageScore:
    """The metrics of one image and its histogram of errors.

    Raises NothingToScore when too little ground truth is valid, PredictionError when the prediction has no value on
    a pixel that counts: leaving such pixels out would flatter it.
    """
    pixels = int(np.count_nonzero(valid))
    if pixels == 0:
        raise NothingToScore("no valid pixel")
    try:
        metrics, errors, angles = rules.kind.score_image(pred, gt, valid, rules)
    except NoValueError as error:
        raise PredictionError(f"{pair.prediction or pair.name}: {error}") from error
    except ValueError as error:
        raise NothingToScore(str(error)) from error
    places = np.flatnonzero(valid)
    places = places[:: max(1, -(-len(places) // PIXELS))]
    few_pred, few_gt = (one.reshape(valid.size, 1, -1)[places] for one in (pred, gt))
    evidence, fit = rules.kind.evidence(few_pred, few_gt, rules), placement_fit(rules)
    on_image = placed(fit, np.atleast_3d(pred), np.atleast_3d(gt), valid) if fit else None
    return ImageScore(
        pair.name,
        pair.scene_type,
        pixels,
        valid.shape,
        metrics,
        errors.astype(np.uint32),
        angles,
        *evidence,
        distorted,
        placed=on_image,
    )


def placement_fit(rules: Rules) -> Fit | None:
    """The error of values and truth as they are scored, for `placed`."""
    return rules.kind.placement_fit(rules.gt_space, domain=rules.align, truth_space=rules.gt_space)


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
    truth = None if pair.gt is None else load_truth(pair, rules)
    require_truth(truth)
    if constant is None or truth is None:
        pred, distorted = load_prediction(pair, rules, truth)
    if constant is not None:
        pred, distorted = np.broadcast_to(constant, (pred if truth is None else truth.gt).shape), False
    judged = None if judgements is None else (judgements, judgements.read_bytes)
    return score_maps(pair, truth, pred, distorted, rules, radius, judged)


def require_truth(truth: Truth | None) -> None:
    """NothingToScore where no pixel of the truth is valid."""
    if truth is not None and not truth.valid.any():
        if truth.unknown.get(OUTSIDE) == truth.valid.size:
            raise NothingToScore("the mask is empty: not zero must mean valid")
        raise NothingToScore("no valid pixel")


def score_maps(
    pair: Pair,
    truth: Truth | None,
    pred: np.ndarray,
    distorted: bool,
    rules: Rules,
    radius: int = 0,
    judgements: tuple[object, Callable[[], bytes]] | None = None,
) -> tuple[ImageScore, ImageScore | None]:
    """`score_pair` of a truth and a prediction that `prediction_of` has fitted to it. judgements: name and reader."""
    shrunk = None
    if truth is None:
        plain = ImageScore(pair.name, pair.scene_type, pred[..., 0].size, pred.shape[:2], {})
    else:
        plain = score(pair, pred, truth.gt, truth.valid, rules, distorted)
        middle = rules.kind.truth_median(truth.gt[truth.valid])
        plain = plain._replace(unknown=truth.unknown, truth_pixels=truth.full[0] * truth.full[1], median_depth=middle)
        if radius:
            try:
                shrunk = score(pair, pred, truth.gt, erode(truth.valid, radius), rules, distorted)
            except NothingToScore:
                shrunk = None  # the row of eroded masks states how many images it holds
    if judgements is not None:
        plain.metrics["whdr"] = _score_judgements(pair, pred, *judgements, rules)
    return plain, shrunk


def truth_sum(pair: Pair, rules: Rules) -> tuple[np.ndarray, int]:
    """(sum of the valid ground truth, pixels): unit normals (3,), or colour (3,) or grey () as stored."""
    truth = load_truth(pair, rules)
    values = rules.kind.summed(truth.gt[truth.valid])
    return values.sum(axis=0), len(values)


def _score_judgements(pair: Pair, pred: np.ndarray, name: object, read: Callable[[], bytes], rules: Rules) -> float:
    """WHDR of one albedo prediction (H, W) or (H, W, 3) in `rules.gt_space`."""
    try:
        require_values(~np.isfinite(pred), NOT_FINITE)
    except NoValueError as error:
        raise PredictionError(f"{pair.prediction or pair.name}: {error}") from error
    try:
        return whdr(convert_space(pred, rules.gt_space, "linear"), json_object(read()))
    except (OSError, ValueError) as error:
        raise GroundTruthError(f"{name}: {error}") from error
