"""Angular errors of surface normals, in float64."""

from __future__ import annotations

import numpy as np

from utils.maps.conventions import unit_vectors

NORMAL_THRESHOLDS = (5, 7.5, 11.25, 22.5, 30)  # degrees


def angular_error(pred, gt) -> np.ndarray:
    """Angle in degrees between vectors: acos(p . g / (|p| |g|)), in [0, 180].

    pred, gt: (..., 3) of one shape, any length > 0. Returns float64 (...); NaN where either vector is zero or not
    finite. Raises ValueError unless the shapes agree and the last axis is 3.

    Evaluated as atan2(|p x g|, p . g). It is the angle that acos(clip(cos, -1, 1)) gives, but acos turns a rounding
    of 1e-16 in the cosine into 1e-6 degrees near 0 and 180, where this form is exact; and it needs no unit vectors.
    """
    pred, gt = np.asarray(pred), np.asarray(gt)
    if pred.shape != gt.shape or pred.ndim == 0 or pred.shape[-1] != 3:
        raise ValueError(f"normals need one shape (..., 3), not prediction {pred.shape} and ground truth {gt.shape}")
    # One contiguous plane per component: three times faster than arithmetic along a last axis of 3.
    px, py, pz = np.moveaxis(pred, -1, 0).astype(np.float64, order="C")
    gx, gy, gz = np.moveaxis(gt, -1, 0).astype(np.float64, order="C")
    with np.errstate(all="ignore"):
        cross = np.sqrt((py * gz - pz * gy) ** 2 + (pz * gx - px * gz) ** 2 + (px * gy - py * gx) ** 2)
        dot = px * gx + py * gy + pz * gz
        angles = np.degrees(np.arctan2(cross, dot))
        size = np.abs(dot) + cross
        odd = ~((size > 1e-100) & (size < 1e100))
    if odd.any():  # zero, not finite, or so short or long that the products above under- or overflow
        angles = np.where(odd, np.nan, angles)
        unit_pred, unit_gt = unit_vectors(pred[odd]), unit_vectors(gt[odd])
        usable = np.isfinite(unit_pred).all(axis=-1) & np.isfinite(unit_gt).all(axis=-1)
        rescued = np.full(usable.shape, np.nan)
        if usable.any():
            rescued[usable] = angular_error(unit_pred[usable], unit_gt[usable])
        angles[odd] = rescued
    return angles


def normal_metrics(angles) -> dict[str, float]:
    """Summary of angular errors: mean, median, rmse in degrees, below_t = percent of angles strictly below t degrees.

    angles: (N,) degrees of the valid pixels, of one image or of a whole pooled set. Raises ValueError if there are
    none or if one is not finite. The metrics and thresholds of Bae and Davison, DSINE (2403.00712), section 5.
    """
    angles = np.asarray(angles, dtype=np.float64).ravel()
    if angles.size == 0:
        raise ValueError("no valid pixel: the angles are empty")
    if not np.isfinite(angles).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(angles))} of {angles.size} angles are not finite")
    scores = {
        "mean": float(angles.mean()),
        "median": float(np.median(angles)),
        "rmse": float(np.sqrt(np.square(angles).mean())),
    }
    for threshold in NORMAL_THRESHOLDS:
        scores[f"below_{threshold}"] = 100.0 * int(np.count_nonzero(angles < threshold)) / angles.size
    return scores


# Depth


# Albedo and shading
