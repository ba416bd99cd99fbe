"""Scores for predicted intrinsics: pure float64 functions on arrays, no files.

Every function takes one image (or one set of angles) and raises ValueError, in one line, when its number would mean
nothing. Aggregation over images is the caller's business, because published evaluators disagree about it.
"""

from __future__ import annotations

import numpy as np

NORMAL_THRESHOLDS = (5, 7.5, 11.25, 22.5, 30)  # degrees
_HIGHER_IS_BETTER = ("below", "delta", "psnr", "ssim")
SSIM_RADIUS, SSIM_SIGMA = 5, 1.5  # the 11 x 11 Gaussian window of Wang et al. 2004


def higher_is_better(metric: str) -> bool:
    """Whether more of the metric of this name is better: shares of good pixels, PSNR, SSIM; all others are errors.

    A prefix `label_` (scored against a label, not against a measurement) changes nothing.
    """
    return metric.removeprefix("label_").startswith(_HIGHER_IS_BETTER)


# Surface normals


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


def unit_vectors(vectors) -> np.ndarray:
    """Vectors (..., 3) scaled to length 1, float64; NaN where the vector is zero or not finite."""
    vectors = np.asarray(vectors, dtype=np.float64)
    with np.errstate(all="ignore"):
        # Dividing by the largest component first keeps squares of very long or short vectors inside float64's range.
        vectors = vectors / np.abs(vectors).max(axis=-1, keepdims=True)
        return vectors / np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]


def normal_valid(gt, mask=None) -> np.ndarray:
    """Pixels with a ground-truth normal: mask (if any) and every component finite and norm(gt) > 0.

    gt: (..., 3) float normals; mask: (...) of any dtype, true = valid. Returns bool (...).
    A normal whose components merely sum to zero is valid. Raises ValueError on shapes that do not fit.
    """
    gt = np.asarray(gt)
    if gt.ndim == 0 or gt.shape[-1] != 3:
        raise ValueError(f"normals need a last axis of 3, not shape {gt.shape}")
    x, y, z = np.moveaxis(gt, -1, 0)  # plane by plane: reductions over a last axis of 3 are several times slower
    valid = np.isfinite(x) & np.isfinite(y) & np.isfinite(z) & ((x != 0) | (y != 0) | (z != 0))
    if mask is None:
        return valid
    mask = np.asarray(mask)
    if mask.shape != valid.shape:
        raise ValueError(f"mask of shape {mask.shape} does not fit normals of shape {gt.shape}")
    return valid & mask.astype(bool)


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


def align_scale_shift(pred, gt, valid) -> tuple[float, float]:
    """Least squares (scale, shift) that minimise sum over valid of (scale * pred + shift - gt)^2.

    pred, gt: same shape, any unit; valid: bool of that shape. The scale may be negative (near = white labels).
    A constant prediction leaves the scale open: then (0, mean of gt), the best constant. Raises ValueError when no
    pixel is valid or a valid value is not finite. The affine-invariant protocol of MiDaS (1907.01341), section 5.
    """
    pred, gt = _valid_values(pred, gt, valid)
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
    _valid_values(pred, gt, valid)
    if (gt[valid] <= 0).any():
        raise ValueError(f"ground truth depth is not positive on {np.count_nonzero(gt[valid] <= 0)} valid pixels")
    target = gt if align == "depth" else 1 / np.where(valid, gt, 1)
    fit = np.s_[:]
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


# Albedo and shading


def align_scale(pred, gt, valid) -> float:
    """Least squares scale, no shift: minimises sum over valid of (scale * pred - gt)^2; 0 for an all-zero prediction.

    pred, gt: (H, W) or (H, W, C); valid: (H, W) bool; one scale for all channels. Raises ValueError when no pixel is
    valid or a valid value is not finite.
    """
    pred, gt = _valid_values(pred, gt, valid)
    energy = np.vdot(pred, pred)
    return float(np.vdot(pred, gt) / energy) if energy > 0 else 0.0


def albedo_metrics(pred, gt, valid) -> dict[str, float]:
    """Errors of albedo or shading of one image after one least-squares scale (`align_scale`).

    pred, gt: (H, W) or (H, W, C), nominal range [0, 1], both in the same colour space; valid: (H, W) bool.
    rmse, mae; psnr = -10 log10 mse in dB (infinite for a perfect prediction); ssim (see `ssim`); si_mse = mse after
    the scale, which is rmse^2; lmse, lmse_mit (see `local_mse`). Raises ValueError as the functions it calls do.
    """
    pred, gt, valid = np.asarray(pred, np.float64), np.asarray(gt, np.float64), np.asarray(valid, bool)
    scaled = align_scale(pred, gt, valid) * pred
    error = scaled[valid] - gt[valid]
    mse = float((error**2).mean())
    lmse, lmse_mit = local_mse(pred, gt, valid)
    return {
        "rmse": float(np.sqrt(mse)),
        "mae": float(np.abs(error).mean()),
        "psnr": float(-10 * np.log10(mse)) if mse > 0 else float("inf"),
        "ssim": ssim(scaled, gt, valid),
        "si_mse": mse,
        "lmse": lmse,
        "lmse_mit": lmse_mit,
    }


def ssim(pred, gt, valid) -> float:
    """Structural similarity, data range 1: mean over channels and over valid pixels at least 5 from the border.

    pred, gt: (H, W) or (H, W, C); valid: (H, W) bool. Gaussian 11 x 11 window, sigma 1.5, K1 = 0.01, K2 = 0.03,
    population variances (Wang et al. 2004, section III). A window sees its valid pixels only, with the weights
    renormalised; with every pixel valid it is the published number.
    Raises ValueError if no valid pixel is 5 or more from the border.
    """
    pred, gt, valid = np.asarray(pred, np.float64), np.asarray(gt, np.float64), np.asarray(valid, bool)
    _valid_values(pred, gt, valid)
    pred, gt = pred.reshape(*valid.shape, -1), gt.reshape(*valid.shape, -1)
    inner = valid[SSIM_RADIUS : valid.shape[0] - SSIM_RADIUS, SSIM_RADIUS : valid.shape[1] - SSIM_RADIUS]
    if not inner.any():
        raise ValueError(f"ssim needs a valid pixel at least {SSIM_RADIUS} from the border; shape {valid.shape}")
    weight = valid[..., None].astype(np.float64)
    pred, gt = np.where(valid[..., None], pred, 0), np.where(valid[..., None], gt, 0)
    total = _gaussian_window(weight)[inner]

    def local_mean(values):
        return _gaussian_window(values)[inner] / total

    pred_mean, gt_mean = local_mean(pred), local_mean(gt)
    pred_var = local_mean(pred * pred) - pred_mean**2
    gt_var = local_mean(gt * gt) - gt_mean**2
    cov = local_mean(pred * gt) - pred_mean * gt_mean
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * pred_mean * gt_mean + c1) * (2 * cov + c2)
    return float((score / ((pred_mean**2 + gt_mean**2 + c1) * (pred_var + gt_var + c2))).mean())


def local_mse(pred, gt, valid) -> tuple[float, float]:
    """Mean squared error with a least-squares scale of its own in every window, plain and relative: (lmse, lmse_mit).

    pred, gt: (H, W) or (H, W, C); valid: (H, W) bool. Square windows of a tenth of the larger side, half overlapping,
    from the top left corner; a rest narrower than a window is left out. Squared errors are summed over all windows and
    divided by the number of values in them (as si-LMSE on MPI Sintel, Chen and Koltun 2013), or by the sum of squares
    of the ground truth in them, which makes an all-zero prediction score 1 (Grosse et al. 2009, section 4).
    Raises ValueError as `align_scale` does, or when no window holds a valid, non-zero ground truth.
    """
    pred, gt, valid = np.asarray(pred, np.float64), np.asarray(gt, np.float64), np.asarray(valid, bool)
    _valid_values(pred, gt, valid)
    side = max(1, max(valid.shape) // 10)
    step = max(1, side // 2)
    squares, energy, count = 0.0, 0.0, 0
    for top in range(0, valid.shape[0] - side + 1, step):
        for left in range(0, valid.shape[1] - side + 1, step):
            window = np.s_[top : top + side, left : left + side]
            if valid[window].any():
                p, g = pred[window][valid[window]], gt[window][valid[window]]
                power = np.vdot(p, p)
                scale = np.vdot(p, g) / power if power > 0 else 0.0
                squares += np.square(scale * p - g).sum()
                energy += np.vdot(g, g)
                count += p.size
    if energy == 0:
        raise ValueError("no window holds a valid ground truth above zero: lmse is undefined")
    return float(squares / count), float(squares / energy)


def whdr(albedo, judgements: dict, threshold: float = 0.10) -> float:
    """Weighted human disagreement rate in [0, 1]: share of the human weight that the albedo contradicts.

    albedo: (H, W) or (H, W, C), linear; its lightness at a point is the mean over channels. judgements: the IIW
    format, `intrinsic_points` (id, x and y as fractions, opaque) and `intrinsic_comparisons` (point1, point2, darker
    in 1, 2, E, darker_score). Point 1 is called darker if l2 / l1 > 1 + threshold. Comparisons of a point that is
    not opaque, without a positive score or without a verdict do not count (Bell et al. 2014, section 3.4).
    Raises ValueError on an albedo with NaN or inf, on malformed judgements, or when none of them counts.
    """
    albedo = np.asarray(albedo, np.float64)
    if not np.isfinite(albedo).all():
        raise ValueError(f"albedo is not finite on {np.count_nonzero(~np.isfinite(albedo))} values")
    lightness = albedo.mean(axis=2) if albedo.ndim == 3 else albedo
    rows, cols = lightness.shape
    try:
        points = {point["id"]: point for point in judgements["intrinsic_points"]}
        wrong = total = 0.0
        for comparison in judgements["intrinsic_comparisons"]:
            pair = [points[comparison["point1"]], points[comparison["point2"]]]
            verdict, weight = comparison["darker"], comparison["darker_score"]
            if verdict not in ("1", "2", "E") or not weight or weight <= 0 or not all(p["opaque"] for p in pair):
                continue
            first, second = (max(1e-10, lightness[int(p["y"] * rows), int(p["x"] * cols)]) for p in pair)
            guess = "1" if second / first > 1 + threshold else "2" if first / second > 1 + threshold else "E"
            wrong += weight * (guess != verdict)
            total += weight
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not judgements in the IIW format: {type(error).__name__} {error}") from error
    if total == 0:
        raise ValueError("no comparison counts: all lack a verdict, a positive score or opaque points")
    return float(wrong / total)


def _valid_values(pred, gt, valid) -> tuple[np.ndarray, np.ndarray]:
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


def _gaussian_window(values: np.ndarray) -> np.ndarray:
    """Gaussian-weighted sums over the 11 x 11 windows wholly inside (H, W, C); returns (H - 10, W - 10, C)."""
    taps = np.exp(-0.5 * (np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1) / SSIM_SIGMA) ** 2)
    taps /= taps.sum()
    rows, cols = values.shape[0] - 2 * SSIM_RADIUS, values.shape[1] - 2 * SSIM_RADIUS
    values = sum(tap * values[k : k + rows] for k, tap in enumerate(taps))
    return sum(tap * values[:, k : k + cols] for k, tap in enumerate(taps))
