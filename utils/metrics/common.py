"""What the metrics share: which way is better, and which values count."""

from __future__ import annotations

import numpy as np

_HIGHER_IS_BETTER = ("below", "delta", "psnr", "ssim")


def higher_is_better(metric: str) -> bool:
    """Whether more of the metric of this name is better: shares of good pixels, PSNR, SSIM; all others are errors.

    A prefix `label_` (scored against a label, not against a measurement) changes nothing.
    """
    return metric.removeprefix("label_").startswith(_HIGHER_IS_BETTER)


def valid_values(pred, gt, valid) -> tuple[np.ndarray, np.ndarray]:
    """Values of both where valid, float64; ValueError on misfits, an empty mask, or NaN or inf inside the mask."""
    pred, gt, valid = np.asarray(pred, np.float64), np.asarray(gt, np.float64), np.asarray(valid, bool)
    if pred.shape != gt.shape or valid.shape != gt.shape[: valid.ndim] or gt.ndim - valid.ndim > 1:
        raise ValueError(f"shapes do not fit: prediction {pred.shape}, ground truth {gt.shape}, mask {valid.shape}")
    pred, gt = pred[valid], gt[valid]
    if gt.size == 0:
        raise ValueError("no valid pixel: the mask is empty")
    for name, values in (("prediction", pred), ("ground truth", gt)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} is not finite on {np.count_nonzero(~np.isfinite(values))} valid values")
    return pred, gt
