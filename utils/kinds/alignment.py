"""Depth that is known up to scale and shift: its labels' coding, its alignment, its errors, its convention check.

A label first brings each image's quantity to u in [0,1], 0 = near and 1 = far, by the image's own near and far: an
unknown scale and shift. The coding is a fixed function f of u, and grey = 1 - f(u):

    linear   f(u) = u                  the released convention
    sqrt     f(u) = sqrt(u)
    log      f(u) = log10(1 + 9 u)     the logarithm of depth in an image whose far is 10 times its near

Since f does not depend on the image, undoing it gives u again: the quantity up to scale and shift, as with linear
labels. (Of log d, itself stretched between near and far, only d up to scale and *power* would come back, which no
scale and shift absorb.)

The convention check follows the rule in `utils.kinds.evidence`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from utils.intrinsics import DEPTH_CODINGS
from utils.kinds.base import median, valid_values
from utils.kinds.evidence import (
    AGREE,
    SPREAD,
    SURE_AGREE,
    SURE_IMAGES,
    Evidence,
    Finding,
    best_finding,
    odd_finding,
    sample,
)

if TYPE_CHECKING:
    from torch import Tensor

Values = TypeVar("Values", np.ndarray, "Tensor")
LOG_RANGE = 9.0  # 1 + LOG_RANGE: far over near, where log coding is the logarithm of depth
ROUNDS = 10  # when an ensemble is aligned; the members' scales settle in two or three
CLEAR = 0.5  # rank correlation from which brightness says where near is
DOMAINS: dict[str, tuple[Callable, Callable]] = {  # what a prediction may be affine in: of depth, and back
    "depth": (lambda d: d, lambda t: t),
    "disparity": (lambda d: 1 / d, lambda t: 1 / t),
    "log": (np.log, np.exp),
    "sqrt": (np.sqrt, np.square),
}
DOMAIN_WORDS = {
    "depth": "depth",
    "disparity": "disparity (1 / depth)",
    "log": "the logarithm of depth",
    "sqrt": "the square root of depth",
}


def encode_far(u: np.ndarray, coding: str) -> np.ndarray:
    """f(u) of farness u in [0,1], in [0,1] too. Raises ValueError for an unknown coding."""
    if coding == "linear":
        return u
    if coding == "sqrt":
        return np.sqrt(u)
    if coding == "log":
        return np.log1p(LOG_RANGE * u) / np.log1p(LOG_RANGE)
    raise ValueError(f"a depth coding is one of {', '.join(DEPTH_CODINGS)}, not {coding!r}")


def decode_far(coded: Values, coding: str) -> Values:
    """u from f(u), of arrays or tensors; rising everywhere, also outside [0,1], where predictions stray."""
    if coding == "linear":
        return coded
    if coding == "sqrt":
        return coded * abs(coded)
    if coding == "log":
        return ((1 + LOG_RANGE) ** coded - 1) / LOG_RANGE
    raise ValueError(f"a depth coding is one of {', '.join(DEPTH_CODINGS)}, not {coding!r}")


def linear_map(picture: Tensor, coding: str) -> Tensor:
    """A predicted or labelled map (...,3,H,W) about [-1,1], near = 1 -> the same with linear coding.

    The mean of the channels, three times; a linear map is returned as it is.
    """
    if coding == "linear":
        return picture
    far = (1 - picture.float().mean(-3, keepdim=True)) / 2  # what the coding made of farness
    return (1 - 2 * decode_far(far, coding)).expand(picture.shape)


def align_scale_shift(pred: np.ndarray, gt: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    """Least squares (scale, shift) that minimise sum over valid of (scale * pred + shift - gt)^2.

    pred, gt: same shape, any unit; valid: bool of that shape. The scale may be negative (near = white labels).
    A constant prediction leaves the scale open: then (0, mean of gt), the best constant. Raises ValueError when no
    pixel is valid or a valid value is not finite. The affine-invariant protocol of MiDaS (1907.01341), section 5.
    """
    pred, gt = valid_values(pred, gt, valid)
    if np.ptp(pred) == 0:
        return 0.0, float(gt.mean())
    pred_mean, gt_mean = pred.mean(), gt.mean()
    # Centred sums: the normal equations of [pred, 1] lose half of the digits when the shift is large.
    centred = pred - pred_mean
    scale = (centred @ (gt - gt_mean)) / (centred @ centred)
    return float(scale), float(gt_mean - scale * pred_mean)


def align_depth(
    pred: np.ndarray,
    gt: np.ndarray,
    valid: np.ndarray,
    align: str = "depth",
    min_depth: float | None = None,
    max_depth: float | None = None,
    fit_side: int | None = None,
) -> np.ndarray:
    """The prediction in the ground truth's metres: fit scale and shift on valid pixels, clip to the range, to >= 1e-6.

    pred: (H, W) affine-invariant depth (align = "depth", Marigold 2312.02145) or disparity (align = "disparity": the
    fit is to 1 / gt, and the fitted disparity is clipped to >= 1e-3 before inverting).
    gt: (H, W) metres, > 0 where valid. fit_side: fit on a nearest-neighbour copy of at most that many pixels a side.
    Returns float64 (H, W), meaningful where pred is finite.
    Raises ValueError on an unknown align, no valid pixel, or a ground truth that is not positive there.
    """
    if align not in ("depth", "disparity"):
        raise ValueError(f"align must be depth or disparity, not {align!r}")
    pred, gt, valid = np.asarray(pred, np.float64), np.asarray(gt, np.float64), np.asarray(valid, bool)
    valid_values(pred, gt, valid)
    if (gt[valid] <= 0).any():
        raise ValueError(f"ground truth depth is not positive on {np.count_nonzero(gt[valid] <= 0)} valid pixels")
    target = gt if align == "depth" else 1 / np.where(valid, gt, 1)
    fit: slice | tuple[np.ndarray, ...] = np.s_[:]
    if fit_side is not None and max(valid.shape) > fit_side:
        factor = fit_side / max(valid.shape)
        fit = np.ix_(*(np.floor(np.arange(int(side * factor)) / factor).astype(int) for side in valid.shape))
    scale, shift = align_scale_shift(pred[fit], target[fit], valid[fit])
    aligned = scale * pred + shift
    if align == "disparity":
        aligned = 1 / np.maximum(aligned, 1e-3)
    low, high = (-np.inf if min_depth is None else min_depth), (np.inf if max_depth is None else max_depth)
    return np.maximum(np.clip(aligned, low, high), 1e-6)


def depth_metrics(
    pred: np.ndarray,
    gt: np.ndarray,
    valid: np.ndarray,
    align: str = "depth",
    min_depth: float | None = None,
    max_depth: float | None = None,
    fit_side: int | None = None,
) -> dict[str, float]:
    """Depth errors of one image after `align_depth`, over valid pixels; p the aligned prediction, g the truth.

    Arguments: see `align_depth`; depths in metres, either limit may be None.
    abs_rel = mean |p - g| / g; sq_rel = mean (p - g)^2 / g (m); rmse (m); rmse_log of natural logs; log10 = mean
    |log10 p - log10 g|; delta_k = share in [0, 1] of pixels with max(p/g, g/p) < 1.25^k; silog = 100 times the
    standard deviation of log p - log g (lambda = 1). Eigen et al. (1406.2283), section 4; silog as KITTI reports it.
    Raises ValueError as `align_depth` does.
    """
    valid, gt = np.asarray(valid, bool), np.asarray(gt, np.float64)
    pred, gt = align_depth(pred, gt, valid, align, min_depth, max_depth, fit_side)[valid], gt[valid]
    error, log_error = pred - gt, np.log(pred) - np.log(gt)
    ratio = np.maximum(pred / gt, gt / pred)
    return {
        "abs_rel": float((np.abs(error) / gt).mean()),
        "sq_rel": float((error**2 / gt).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "rmse_log": float(np.sqrt((log_error**2).mean())),
        "log10": float(np.abs(log_error).mean() / np.log(10)),
        "delta1": float((ratio < 1.25).mean()),
        "delta2": float((ratio < 1.25**2).mean()),
        "delta3": float((ratio < 1.25**3).mean()),
        "silog": float(100 * log_error.std()),
    }


def align_members(members: Tensor) -> Tensor:
    """Depths (N,H,W), each known up to scale and shift -> the same on one scale and shift.

    Least squares to the members' median, which moves with them, until it rests. The common scale and shift are then
    the members' own on average. A member that runs against the others gets scale 0: it is in error, not inverted.
    """
    flat = members.double().flatten(1)
    mean, spread = flat.mean(1).mean(), flat.std(1).mean()
    flat = flat - flat.mean(1, keepdim=True)
    flat = flat / flat.std(1, keepdim=True).clamp(min=1e-12)
    power = flat.square().mean(1, keepdim=True).clamp(min=1e-12)
    target = median(flat)
    for _ in range(ROUNDS):
        target = target - target.mean()
        target = target / target.std().clamp(min=1e-12)
        scale = ((flat * target).mean(1, keepdim=True) / power).clamp(min=0)
        target = median(scale * flat)
    return (scale * flat / target.std().clamp(min=1e-12) * spread + mean).reshape(members.shape).float()


def aligned(values: Tensor, reference: Tensor) -> Tensor:
    """a values + b, nearest to `reference` in the least-squares sense; a is not negative. Shapes must broadcast."""
    x, y = values.double(), reference.double()
    dx, dy = x - x.mean(), y - y.mean()
    scale = ((dx * dy).mean() / dx.square().mean().clamp(min=1e-12)).clamp(min=0)
    return (scale * dx + y.mean()).float()


def enlarged(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A low-resolution depth (3,h,w) -> (1,*shape)."""
    from torch.nn.functional import interpolate

    return interpolate(values.mean(0)[None, None], size=shape, mode="bilinear", antialias=True)[0]


def depth_evidence(
    values: np.ndarray,
    truth: np.ndarray | None = None,
    known: np.ndarray | None = None,
    codings: Sequence[str] = ("linear",),
) -> Evidence:
    """values (H,W) or (H,W,3): a depth map in any unit. truth (H,W): metres, > 0 where known.

    codings: which of labels to try (see above): values are then grey in [0,1], near = 1.
    errors: (coding, domain) -> mean relative error after scale and shift in that domain, on the middle nine tenths of
    the depths, where no label is clipped.
    """
    p, g = sample(
        values if values.ndim == 3 else values[..., None], None if truth is None else truth[..., None], known
    )
    odd = ("colours",) if p.shape[1] == 3 and (np.ptp(p, axis=1) > SPREAD * _range(p)).mean() > 0.25 else ()
    if g is None or len(g) < 16:
        return Evidence({}, odd=odd)
    p, g = p.mean(axis=1), g[:, 0]
    low, high = np.percentile(g, [5, 95])
    inside = (g >= low) & (g <= high) & np.isfinite(p)
    p, g = p[inside], g[inside]
    if len(g) < 16 or odd:
        return Evidence({}, odd=odd)
    nearness = float(np.corrcoef(_ranks(p), -_ranks(g))[0, 1]) if np.ptp(p) > 0 and np.ptp(g) > 0 else 0.0
    everywhere = np.ones(len(g), bool)
    errors: dict[tuple, float] = {}
    constant = np.inf
    for domain, (to, back) in DOMAINS.items():
        target = to(g)
        ends = np.sort(to(np.array([low / 2, high * 2])))
        constant = min(constant, float((np.abs(back(target.mean()) - g) / g).mean()))
        for coding in codings if domain in ("depth", "disparity") else ("linear",):
            u = p if coding == "linear" else decode_far(1 - p, coding)
            scale, shift = align_scale_shift(u, target, everywhere)
            fitted = back(np.clip(scale * u + shift, *ends))
            errors[coding, domain] = float((np.abs(fitted - g) / g).mean())
    return Evidence(errors, constant, nearness=nearness)


def depth_findings(
    evidence: Sequence[Evidence], coding: str = "linear", domain: str = "depth", polarity: bool = True
) -> list[Finding]:
    """coding, domain: what the values are taken to have, and to be affine in. polarity: whether near must be large."""
    if odd := odd_finding(evidence, {"colours": "have colours: they are depth through a colour map"}):
        return [odd]
    found: list[Finding] = []
    seen = [one.nearness for one in evidence if one.nearness is not None]
    agree = sum(one < -CLEAR for one in seen)
    if polarity and seen and agree >= AGREE * len(seen) and np.mean(seen) < -CLEAR:
        sure = len(seen) >= SURE_IMAGES and agree >= SURE_AGREE * len(seen)
        change = f"are inverted: far is large (rank correlation with nearness {np.mean(seen):.2f})"
        found.append(Finding(("inverted",), change, agree, len(seen), sure))
    if one := best_finding(evidence, (coding, domain), "(relative)"):
        kind, affine_in = one.key
        coded = "" if kind == coding else f"undoing a {kind} coding" if kind != "linear" else "not undoing a coding"
        read = "" if affine_in == domain else f"reading {DOMAIN_WORDS[affine_in]} out"
        found.append(replace(one, change=" and ".join(part for part in (coded, read) if part)))
    return found


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of (N,), equal values sharing their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _range(values: np.ndarray) -> float:
    """1 for values in [0,1], 255 for those of 8 bits."""
    return 255.0 if values.size and values.max() > 2 else 1.0


def fit_depth(values: np.ndarray, truth: np.ndarray, coding: str, domain: str) -> tuple[float, float]:
    """Relative errors of depths (N,C) after scale and shift, as coded in `domain`, and of a constant; for `Fit`."""
    found = depth_evidence(values[:, None], truth[:, None, 0], codings=(coding,))
    return found.errors.get((coding, domain), np.nan), found.constant
