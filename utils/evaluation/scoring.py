"""Scores one image: calls the metrics on its truth and its prediction."""

import json
from pathlib import Path

import numpy as np

from utils.evaluation.aggregation import ANGLE_BINS, ImageScore, angle_bins
from utils.evaluation.maps import load_prediction, load_truth
from utils.evaluation.pairing import Pair
from utils.evaluation.rules import GroundTruthError, NothingToScore, PredictionError, Rules
from utils.maps.conventions import convert_space, to_frame, unit_vectors
from utils.maps.known import OUTSIDE
from utils.metrics.colour import albedo_metrics, align_scale, whdr
from utils.metrics.convention_check import PIXELS, Evidence, colour_evidence, depth_evidence, normals_evidence
from utils.metrics.depth import align_depth, depth_metrics
from utils.metrics.normals import angular_error, normal_metrics
from utils.metrics.placement_check import Fit, fit_of, placed
from utils.metrics.protocols import DEPTH_RULES, erode

RELATIVE_BINS = 1001  # depth and colour errors: bins of 0.001, the last holds everything from 1 up


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
    kept = None
    if rules.intrinsic.kind == "normals":
        values, angles = _score_normals(pair, pred, gt, valid)
        errors = np.bincount(angle_bins(angles), minlength=ANGLE_BINS)
        kept = angles if rules.protocol == "pooled" else None  # 4 bytes per pixel, for the pooled median alone
    else:
        _reject(pair, ~np.isfinite(pred[valid]), "NaN or inf")
        score_one = _score_depth if rules.intrinsic.kind == "depth" else _score_colour
        try:
            values, errors = score_one(pred, gt, valid, rules)
        except ValueError as error:
            raise NothingToScore(str(error)) from error
        errors = np.bincount(np.minimum(errors * 1000, RELATIVE_BINS - 1).astype(int), minlength=RELATIVE_BINS)
    evidence = gather(pred, gt, valid, rules)
    on_image = placed(placement_fit(rules), np.atleast_3d(pred), np.atleast_3d(gt), valid)
    return ImageScore(
        pair.name,
        pair.scene_type,
        pixels,
        valid.shape,
        values,
        errors.astype(np.uint32),
        kept,
        *evidence,
        distorted,
        placed=on_image,
    )


def gather(pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> tuple[Evidence, Evidence | None]:
    """(how well other conventions would fit the prediction, what the true normals show by themselves).

    pred, gt: as they are scored. What `rules` made of their files is undone first, on the pixels that are looked at.
    """
    places = np.flatnonzero(valid)
    places = places[:: max(1, -(-len(places) // PIXELS))]
    pred, gt = (one.reshape(valid.size, 1, -1)[places] for one in (pred, gt))
    if rules.intrinsic.kind == "normals":
        truth = normals_evidence(to_frame(gt, rules.gt_frame))
        return normals_evidence(to_frame(pred, rules.pred_frame), gt), truth
    if rules.intrinsic.kind == "depth":
        return depth_evidence(pred, gt[..., 0]), None
    linear = convert_space(gt, rules.gt_space, "linear")
    return colour_evidence(convert_space(pred, rules.gt_space, rules.pred_space), linear, None, rules.pred_space), None


def placement_fit(rules: Rules) -> Fit:
    """The error of values and truth as they are scored, for `placed`."""
    fit = fit_of(rules.intrinsic, rules.gt_space, domain=rules.align)
    if rules.intrinsic.kind != "colour" or rules.gt_space == "linear":
        return fit
    return lambda values, truth: fit(values, convert_space(truth, rules.gt_space, "linear"))


def compare(pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """(prediction as it was scored, error map (H, W)): degrees for normals, |p - g| / g for depth, else mean |p - g|.

    Values outside `valid` mean nothing.
    """
    if rules.intrinsic.kind == "normals":
        return pred, angular_error(pred, gt)
    if rules.intrinsic.kind == "depth":
        rule = DEPTH_RULES[rules.protocol]
        aligned = align_depth(pred, gt, valid, rules.align, rule.min_depth, rule.max_depth, rule.fit_side)
        return aligned, np.abs(aligned - gt) / np.where(valid, gt, 1)
    scaled = align_scale(pred, gt, valid) * np.asarray(pred, np.float64)
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
    truth = None if pair.gt is None else load_truth(pair, rules)
    if truth is not None and not truth.valid.any():
        if truth.unknown.get(OUTSIDE) == truth.valid.size:
            raise NothingToScore("the mask is empty: not zero must mean valid")
        raise NothingToScore("no valid pixel")
    distorted = False
    if constant is None or truth is None:
        pred, distorted = load_prediction(pair, rules, truth)
    if constant is not None:
        pred = np.broadcast_to(constant, (pred if truth is None else truth.gt).shape)
    shrunk = None
    if truth is None:
        plain = ImageScore(pair.name, pair.scene_type, pred[..., 0].size, pred.shape[:2], {})
    else:
        plain = score(pair, pred, truth.gt, truth.valid, rules, distorted)
        plain = plain._replace(unknown=truth.unknown, truth_pixels=truth.full[0] * truth.full[1])
        if rules.intrinsic.kind == "depth":
            plain = plain._replace(median_depth=float(np.median(truth.gt[truth.valid])))
        if radius:
            try:
                shrunk = score(pair, pred, truth.gt, erode(truth.valid, radius), rules, distorted)
            except NothingToScore:
                shrunk = None  # the row of eroded masks states how many images it holds
    if judgements is not None:
        plain.metrics["whdr"] = _score_judgements(pair, pred, judgements, rules)
    return plain, shrunk


def truth_sum(pair: Pair, rules: Rules) -> tuple[np.ndarray, int]:
    """(sum of the valid ground truth, pixels): unit normals (3,), or colour (3,) or grey () as stored."""
    truth = load_truth(pair, rules)
    values = truth.gt[truth.valid]
    if rules.intrinsic.kind == "normals":
        values = unit_vectors(values)
    return values.sum(axis=0), len(values)


def _score_normals(
    pair: Pair, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """(metrics, float32 angles of the valid pixels)."""
    pred, gt = pred.reshape(-1, 3), gt.reshape(-1, 3)
    if not valid.all():
        chosen = np.flatnonzero(valid)  # five times faster than indexing rows with a mask
        pred, gt = pred.take(chosen, axis=0), gt.take(chosen, axis=0)
    angles = angular_error(pred, gt)
    _reject(pair, np.isnan(angles), "NaN, inf or the zero vector")
    return normal_metrics(angles), angles.astype(np.float32)


def _score_depth(
    pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules
) -> tuple[dict[str, float], np.ndarray]:
    """(metrics, relative errors of the valid pixels)."""
    if np.count_nonzero(valid) < 3:
        raise ValueError("fewer than 3 valid pixels: scale and shift would fit them perfectly")
    rule = DEPTH_RULES[rules.protocol]
    values = depth_metrics(pred, gt, valid, rules.align, rule.min_depth, rule.max_depth, rule.fit_side)
    return values, compare(pred, gt, valid, rules)[1][valid]


def _score_colour(
    pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules
) -> tuple[dict[str, float], np.ndarray]:
    """(metrics, mean absolute errors of the valid pixels)."""
    return albedo_metrics(pred, gt, valid), compare(pred, gt, valid, rules)[1][valid]


def _score_judgements(pair: Pair, pred: np.ndarray, path: Path, rules: Rules) -> float:
    """WHDR of one albedo prediction (H, W) or (H, W, 3) in `rules.gt_space`."""
    _reject(pair, ~np.isfinite(pred), "NaN or inf")
    try:
        return whdr(convert_space(pred, rules.gt_space, "linear"), json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise GroundTruthError(f"{path}: {error}") from error


def _reject(pair: Pair, bad: np.ndarray, what: str) -> None:
    if bad.any():
        name = pair.prediction or pair.name
        codes = "" if what == "NaN or inf" else " (in 8 and 16 bits: black, white and mid-grey)"
        raise PredictionError(f"{name}: {what} on {np.count_nonzero(bad)} of {bad.size} scored values{codes}")
