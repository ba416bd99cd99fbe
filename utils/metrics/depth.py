"""Affine-invariant depth errors of one image, in float64."""

from __future__ import annotations

import numpy as np

from utils.metrics.common import valid_values


def align_scale_shift(pred, gt, valid) -> tuple[float, float]:
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
    pred,
    gt,
    valid,
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
    pred,
    gt,
    valid,
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
