"""Errors of albedo and shading of one image, in float64, and the human disagreement rate of albedo."""

from __future__ import annotations

import numpy as np

from utils.metrics.common import valid_values

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5  # the 11 x 11 Gaussian window of Wang et al. 2004


def align_scale(pred, gt, valid) -> float:
    """Least squares scale, no shift: minimises sum over valid of (scale * pred - gt)^2; 0 for an all-zero prediction.

    pred, gt: (H, W) or (H, W, C); valid: (H, W) bool; one scale for all channels. Raises ValueError when no pixel is
    valid or a valid value is not finite.
    """
    pred, gt = valid_values(pred, gt, valid)
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
    valid_values(pred, gt, valid)
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
    valid_values(pred, gt, valid)
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


def _gaussian_window(values: np.ndarray) -> np.ndarray:
    """Gaussian-weighted sums over the 11 x 11 windows wholly inside (H, W, C); returns (H - 10, W - 10, C)."""
    taps = np.exp(-0.5 * (np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1) / SSIM_SIGMA) ** 2)
    taps /= taps.sum()
    rows, cols = values.shape[0] - 2 * SSIM_RADIUS, values.shape[1] - 2 * SSIM_RADIUS
    values = sum(tap * values[k : k + rows] for k, tap in enumerate(taps))
    return sum(tap * values[:, k : k + cols] for k, tap in enumerate(taps))
