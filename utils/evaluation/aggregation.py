"""Turns the scores of images into the numbers of a set: means or pooled pixels, each with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from utils.kinds.evidence import Evidence, Placed
from utils.kinds.normals import BINS_PER_DEGREE, angle_bins


class ImageScore(NamedTuple):
    """The score of one image. errors: how many pixels fall in each bin of the task's error axis."""

    name: str
    scene_type: str | None
    pixels: int
    shape: tuple[int, int]
    metrics: dict[str, float]
    errors: np.ndarray | None = None
    angles: np.ndarray | None = None  # float32 (pixels,), kept for the pooled median alone
    evidence: Evidence | None = None  # how well other conventions would fit the prediction
    truth_evidence: Evidence | None = None  # what the truth's own values show
    distorted: bool = False  # the prediction had other proportions than the truth
    unknown: Mapping[str, int] = MappingProxyType({})  # reason -> pixels of the truth's file without a value
    truth_pixels: int = 0  # of that file, 0 without one
    median_depth: float | None = None  # metres, of the valid pixels
    placed: Placed | None = None  # whether the prediction lies on its image


def metric_table(scores: Sequence[ImageScore]) -> tuple[list[str], np.ndarray]:
    """(metric names, their values (N, metrics)); NaN where an image does not have one."""
    keys = list(dict.fromkeys(key for s in scores for key in s.metrics))
    return keys, np.array([[s.metrics.get(key, np.nan) for key in keys] for s in scores])


def mean_metrics(scores: Sequence[ImageScore], weights: np.ndarray | None = None) -> dict[str, float]:
    """Each metric's mean over the images that have it, weighted if `weights` (N,) is given."""
    keys, values = metric_table(scores)
    weights = np.ones(len(scores)) if weights is None else weights
    return {key: float(np.average(v[~np.isnan(v)], weights=weights[~np.isnan(v)])) for key, v in zip(keys, values.T)}


def pooled_metrics(scores: Sequence[ImageScore]) -> dict[str, float]:
    """`normal_metrics` of all pixels of all images in one pool.

    Means of pixels are means of images weighted by their pixels; rmse pools the squares. The median is the exact one
    of the pooled angles, each rounded to float32: it costs 4 bytes per valid pixel, and nothing else here grows.
    """
    pixels = np.array([s.pixels for s in scores], dtype=np.float64)
    metrics = mean_metrics(scores, pixels)
    metrics["rmse"] = float(np.sqrt(np.average([s.metrics["rmse"] ** 2 for s in scores], weights=pixels)))
    counts = np.array(_all_kept(s.errors for s in scores)).sum(axis=0)
    metrics["median"] = pooled_median(_all_kept(s.angles for s in scores), counts)
    return metrics


def _all_kept(arrays: Iterable[np.ndarray | None]) -> list[np.ndarray]:
    """The arrays of all images; TypeError where one was not kept: a pool without it would be another pool."""
    kept = []
    for array in arrays:
        if array is None:
            raise TypeError("an image's score lacks the pixel errors that a pool is made of")
        kept.append(array)
    return kept


def pooled_median(pools: Sequence[np.ndarray], counts: np.ndarray) -> float:
    """Exact median of many float32 arrays of angles without joining them.

    counts: (ANGLE_BINS,) how many of all angles fall in each bin: only the bins around the middle are looked into.
    """
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    ranks = np.array([(total - 1) // 2, total // 2])
    first, last = np.searchsorted(cumulative, ranks, side="right")
    found = []
    for pool in pools:
        bins = angle_bins(pool)
        found.append(pool[(bins >= first) & (bins <= last)])
    middle = np.sort(np.concatenate(found))
    below = int(cumulative[first - 1]) if first else 0
    return float(middle[ranks - below].astype(np.float64).mean())


def intervals(
    scores: Sequence[ImageScore], pooled: bool, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]] | None:
    """Percentile bootstrap interval of each metric, resampling whole images with replacement; None below 2 images.

    NaN where a mean is infinite. Pixels of one image are not independent, images nearly are. The pooled median of a
    resample is read off the images' histograms, linear inside a bin of 0.05 degrees. Efron 1979.
    """
    count = len(scores)
    if count < 2:
        return None
    keys, values = metric_table(scores)
    present = ~np.isnan(values)
    values = np.where(present, values, 0)
    pixels = np.array([s.pixels for s in scores], dtype=np.float64)
    if pooled:
        rmse, median = keys.index("rmse"), keys.index("median")
        values[:, rmse] **= 2
        histograms = np.array([s.errors for s in scores], dtype=np.float32)
    rng = np.random.default_rng(seed)
    draws = np.empty((resamples, len(keys)))
    for start in range(0, resamples, 50):  # in blocks, so that the matrix of counts stays small for large sets
        stop = min(start + 50, resamples)
        picks = rng.integers(count, size=(stop - start, count))
        times = np.array([np.bincount(row, minlength=count) for row in picks], dtype=np.float64)
        weights = times * pixels if pooled else times
        with np.errstate(invalid="ignore", divide="ignore"):
            draws[start:stop] = weights @ values / (weights @ present)
        if pooled:
            draws[start:stop, rmse] = np.sqrt(draws[start:stop, rmse])
            draws[start:stop, median] = _histogram_medians(times.astype(np.float32) @ histograms)
    tail = 50 * (1 - level)
    infinite = ~np.isfinite(values).all(axis=0)
    draws[:, infinite] = 0
    low, high = np.nanpercentile(draws, [tail, 100 - tail], axis=0)  # a resample may miss every image with a metric
    low[infinite] = high[infinite] = np.nan
    return {key: (float(a), float(b)) for key, a, b in zip(keys, low, high)}


def _histogram_medians(histograms: np.ndarray) -> np.ndarray:
    """Median of each row of counts (R, ANGLE_BINS), in degrees, linear inside the bin."""
    cumulative = np.cumsum(histograms, axis=1, dtype=np.float64)
    half = cumulative[:, -1] / 2
    medians = np.empty(len(histograms))
    for row, (counts, target) in enumerate(zip(cumulative, half)):
        place = int(np.searchsorted(counts, target))
        before = counts[place - 1] if place else 0.0
        medians[row] = (place + (target - before) / (counts[place] - before)) / BINS_PER_DEGREE
    return medians


def make_rows(
    scores: Sequence[tuple[ImageScore, ImageScore | None]],
    scene_types: Sequence[str],
    pooled: bool,
    erode: int,
    resamples: int,
    seed: int,
) -> list[dict]:
    """Rows of results: the whole set and each scene type that occurs, then the same with eroded masks.

    scores: (score, score with the mask eroded or None) of each image. Returns dicts of row, images, pixels, metrics
    and intervals; the first is the whole set.
    """
    rows = []
    groups = ("all", *(kind for kind in scene_types if any(plain.scene_type == kind for plain, _ in scores)))
    for variant, suffix in enumerate(("", f", eroded {erode}")[: 2 if erode else 1]):
        for group in groups:
            of_group = (pair[variant] for pair in scores if group in ("all", pair[0].scene_type))
            chosen = [score for score in of_group if score is not None]
            if not chosen:
                continue
            rows.append(
                {
                    "row": group + suffix,
                    "images": len(chosen),
                    "pixels": sum(s.pixels for s in chosen),
                    "metrics": pooled_metrics(chosen) if pooled else mean_metrics(chosen),
                    "intervals": intervals(chosen, pooled, resamples, seed) if resamples else None,
                }
            )
    return rows


def total_errors(scores: Sequence[ImageScore]) -> np.ndarray | None:
    """Histogram of errors over all pixels of all images, int64; None without pixel errors."""
    errors = [s.errors for s in scores if s.errors is not None]
    return np.array(errors).sum(axis=0, dtype=np.int64) if len(errors) == len(scores) else None
