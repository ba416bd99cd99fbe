"""Colours (H,W,3) or grey (H,W): a share of light or of a property, about [0,1], coded as the intrinsic's record says.

Their scores do without the scale: in albedo and shading it is arbitrary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import InputError
from utils.image_io.colour_space import convert_space, to_linear, to_srgb
from utils.image_io.files import Raw, read_npy
from utils.kinds.base import Contradiction, MapKind, Rules, every_channel, finite_rule, valid_values
from utils.kinds.evidence import SPREAD, Evidence, Finding, Fit, best_finding, odd_finding, sample

if TYPE_CHECKING:
    from torch import Tensor

ODD_COLOURS = {
    "255": "reach 255: they were not divided by it",
    "normals": "are normals: vectors of unit length, encoded as (n + 1) / 2",
}
SSIM_RADIUS, SSIM_SIGMA = 5, 1.5  # the 11 x 11 Gaussian window of Wang et al. 2004


class Colour(MapKind):
    """Plain numbers; sRGB-coded or linear."""

    protocols = ("scale_aligned", "as_is", "tone_mapped")
    evaluation_flags = ("pred_space", "gt_space")
    units: Mapping[str, str] = {"psnr": "dB"}

    # Reading -------------------------------------------------------------------------------------------------------

    def decode(self, raw: Raw) -> np.ndarray:
        """About [0,1], coded as they are stored."""
        array, name = raw.array, raw.array.dtype
        if name.kind != "f" and name not in (np.uint8, np.uint16):
            raise ValueError(f"holds {name}: give floats, or 8 or 16 bits")
        if array.ndim == 3 and array.shape[2] != 3:
            raise ValueError(f"has shape {array.shape}: give (H, W) or (H, W, 3)")
        return array.astype(np.float64) if name.kind == "f" else array / np.iinfo(name).max

    def unknown_rules(
        self, raw: np.ndarray, known: np.ndarray, units: float, prediction: bool
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Black and white are colours. A share of light is never -1."""
        yield from finite_rule(raw)
        if raw.dtype.kind == "f" and not prediction:
            yield "-1", every_channel(raw == -1)

    def read_diode(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Linear float values (H,W) or (H,W,3) -> ((H,W,3), nominal range [0,1], scale arbitrary; where known)."""
        values = read_npy(path)
        values = values[..., None] if values.ndim == 2 else values
        if values.ndim != 3 or values.shape[2] not in (1, 3) or values.dtype.kind != "f":
            raise InputError(f"{path}: {values.dtype} {values.shape}, expected linear float (H, W) or (H, W, 3)")
        values, valid = self.filled(values, self.known_pixels(values).pixels)
        return np.broadcast_to(values, (*valid.shape, 3)), valid

    def read_own(self, path: Path, mask: Path | None, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Linear light: whole numbers are coded as the intrinsic's labels, floats are linear whatever the format."""
        found = self.read_truth(path, mask)
        values = np.repeat(found.values[..., None], 3, axis=2) if found.values.ndim == 2 else found.values
        coded = found.coded and self.intrinsic.coding == "srgb"
        return self.filled(to_linear(values) if coded else values, found.known)

    def check_record(self, words: str, facts: Mapping[str, str], use: Any, where: Path | str) -> list[str]:
        lower = words.lower()
        stated = "srgb" if "srgb-coded" in lower else "linear" if "linear" in lower else None
        if stated is not None and stated != use.space:
            raise Contradiction("space", f"{self.intrinsic.name} in {stated}, not {use.space}", stated)
        unclear = f"{where}: the space {words!r} is not known here; the maps are taken for {use.space}"
        return [unclear] if words and stated is None else []

    # Display and files ---------------------------------------------------------------------------------------------

    def truth_panel(self, gt: Tensor, valid: Tensor) -> Tensor:
        """A colour (3,H,W), linear in [0,1], coded as labels are."""
        import torch

        coded = gt.clamp(0, 1).double()
        coded = (torch.from_numpy(to_srgb(coded.numpy())) if self.intrinsic.coding == "srgb" else coded).float()
        return torch.where(valid, 2 * coded - 1, -1.0)

    def exr(self, values: np.ndarray, about: dict[str, str]) -> tuple[np.ndarray, str, dict[str, str]]:
        """Decoded to linear light, which every reader of EXR expects."""
        about = about | {"colour_space": "linear light, sRGB's primaries, up to one scale"}
        return super().exr(to_linear(values) if self.intrinsic.coding == "srgb" else values, about)

    # Scores --------------------------------------------------------------------------------------------------------

    def score(self, prediction: Tensor, gt: Tensor, valid: Tensor, protocol: str) -> dict[str, float] | None:
        """The prediction is coded in [-1,1], clamped; gt (3,H,W) linear.

        As in `evaluate.py --pred_space srgb --gt_space linear`, an image with too little truth to score (no valid
        pixel 5 from the border, or all black) is left out: None.
        """
        coded = np.nan_to_num(prediction.clamp(-1, 1).permute(1, 2, 0).double().numpy(), nan=-1.0) / 2 + 0.5
        linear = to_linear(coded) if self.intrinsic.coding == "srgb" else coded
        try:
            return albedo_metrics(linear, gt.permute(1, 2, 0).numpy(), valid[0].numpy())
        except ValueError:
            return None

    def score_text(self, protocol: str) -> str:
        text = "Errors after one scale, in linear light; the prediction is coded in [-1,1], clamped."
        return text if self.intrinsic.coding == "srgb" else f"{text} (coding: {self.intrinsic.coding})"

    def label_truth(self, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Linear light."""
        import torch

        values = target.double().numpy() / 2 + 0.5
        return torch.from_numpy(to_linear(values) if self.intrinsic.coding == "srgb" else values).float(), valid

    def settings(self, rules: Rules) -> dict:
        return {"pred_space": rules.pred_space, "gt_space": rules.gt_space, "scored_in": rules.gt_space}

    def truth_values(self, values: np.ndarray, path: Path, rules: Rules) -> np.ndarray:
        return convert_space(values, _stored_space(path, rules.gt_space), rules.gt_space)

    def prediction_values(self, values: np.ndarray, path: Path, rules: Rules) -> np.ndarray:
        return convert_space(values, _stored_space(path, rules.pred_space), rules.gt_space)

    def fitted(self, pred: np.ndarray, gt: np.ndarray, resized: bool) -> np.ndarray:
        if pred.ndim == 2 and gt.ndim == 3:
            raise ValueError("is grey, but the ground truth has colours: predict 3 channels")
        return pred.mean(axis=2) if pred.ndim == 3 and gt.ndim == 2 else pred

    def metrics(self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> dict[str, float]:
        if rules.protocol == "scale_aligned":
            return albedo_metrics(pred, gt, valid)
        return albedo_metrics(*as_scored(pred, gt, valid, rules.protocol), valid, scaled=False)

    def protocol_rule(self, protocol: str) -> str:
        return {"as_is": "; the prediction's own scale counts", "tone_mapped": "; both tone-mapped"}.get(protocol, "")

    def compare(
        self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules
    ) -> tuple[np.ndarray, np.ndarray]:
        """The prediction is scaled as the protocol says; errors are means over channels."""
        pred, gt = as_scored(pred, gt, valid, rules.protocol)
        return super().compare(pred, gt, valid, rules)

    # Convention check ----------------------------------------------------------------------------------------------

    def evidence(self, pred: np.ndarray, gt: np.ndarray, rules: Rules) -> tuple[Evidence | None, Evidence | None]:
        linear = convert_space(gt, rules.gt_space, "linear")
        stored = convert_space(pred, rules.gt_space, rules.pred_space)
        return colour_evidence(stored, linear, None, rules.pred_space), None

    def findings(self, evidence: Sequence[Evidence], rules: Rules) -> list[Finding]:
        return colour_findings(evidence)

    def flags_for(self, finding: Finding, rules: Rules) -> str:
        return _flags_for(finding, rules)

    def placement_fit(
        self, space: str = "srgb", coding: str = "linear", domain: str = "depth", truth_space: str = "linear"
    ) -> Fit:
        return Fit(partial(_fit_colour, space=space, truth_space=truth_space))

    def value_findings(self, triples: Sequence[tuple]) -> list[Finding]:
        return colour_findings([colour_evidence(p, gt, known, self.intrinsic.coding) for p, gt, known in triples])

    def label_evidence(self, label: np.ndarray, truth: np.ndarray | None, known: np.ndarray | None) -> Evidence:
        return colour_evidence(label / 2 + 0.5, truth, known, self.intrinsic.coding)

    def label_findings(self, evidence: Sequence[Evidence]) -> list[Finding]:
        return colour_findings(evidence)

    def label_fix(self, finding: Finding) -> str:
        if finding.key == ("normals",):
            return f"pass labels of {self.intrinsic.name} (--pseudo_root), or train the script of normals"
        if finding.key[-1] == "bgr":
            return "re-export them in RGB order (cv2.imwrite takes BGR)"
        return "re-export them sRGB-coded once (or the ground truth is not what it is read as: .npy linear, .png sRGB)"


KIND = Colour


def _stored_space(path: Path, stated: str) -> str:
    """The space of a file's numbers: `stated` by the flag; OpenEXR holds linear light whatever the flag."""
    return "linear" if path.suffix.lower() == ".exr" else stated


def align_scale(pred: np.ndarray, gt: np.ndarray, valid: np.ndarray) -> float:
    """Least squares scale, no shift: minimises sum over valid of (scale * pred - gt)^2; 0 for an all-zero prediction.

    pred, gt: (H, W) or (H, W, C); valid: (H, W) bool; one scale for all channels. Raises ValueError when no pixel is
    valid or a valid value is not finite.
    """
    pred, gt = valid_values(pred, gt, valid)
    energy = np.vdot(pred, pred)
    return float(np.vdot(pred, gt) / energy) if energy > 0 else 0.0


def as_scored(pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, protocol: str) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth (H, W) or (H, W, C) as a protocol compares them, float64.

    scale_aligned: the prediction times its `align_scale`; as_is: both unchanged; tone_mapped: scale_aligned, then both
    times the factor that brings the 90th percentile of the truth's brightness (0.3 R + 0.59 G + 0.11 B) to 0.8, and
    clipped to [0, 1], which is how Marigold (2312.02145) scores Hypersim's shading.
    """
    pred, gt = np.asarray(pred, np.float64), np.asarray(gt, np.float64)
    if protocol == "as_is":
        return pred, gt
    pred = align_scale(pred, gt, valid) * pred
    if protocol == "scale_aligned":
        return pred, gt
    light = (gt if gt.ndim == 2 else gt @ (0.3, 0.59, 0.11))[valid]
    bright = float(np.percentile(light, 90))
    scale = 0.8 / bright if bright >= 1e-4 else 0.0
    return np.clip(scale * pred, 0, 1), np.clip(scale * gt, 0, 1)


def albedo_metrics(pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, scaled: bool = True) -> dict[str, float]:
    """Errors of albedo or shading of one image after one least-squares scale (`align_scale`), unless not `scaled`.

    pred, gt: (H, W) or (H, W, C), nominal range [0, 1], both in the same colour space; valid: (H, W) bool.
    rmse, mae; psnr = -10 log10 mse in dB (infinite for a perfect prediction); ssim (see `ssim`); si_mse = mse after
    the scale, which is rmse^2; lmse, lmse_mit (see `local_mse`). Raises ValueError as the functions it calls do.
    """
    pred, gt, valid = np.asarray(pred, np.float64), np.asarray(gt, np.float64), np.asarray(valid, bool)
    fitted = align_scale(pred, gt, valid) * pred if scaled else pred
    error = fitted[valid] - gt[valid]
    mse = float((error**2).mean())
    lmse, lmse_mit = local_mse(pred, gt, valid)
    return {
        "rmse": float(np.sqrt(mse)),
        "mae": float(np.abs(error).mean()),
        "psnr": float(-10 * np.log10(mse)) if mse > 0 else float("inf"),
        "ssim": ssim(fitted, gt, valid),
        "si_mse": mse if scaled else float(((align_scale(pred, gt, valid) * pred - gt)[valid] ** 2).mean()),
        "lmse": lmse,
        "lmse_mit": lmse_mit,
    }


def ssim(pred: np.ndarray, gt: np.ndarray, valid: np.ndarray) -> float:
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

    def local_mean(values: np.ndarray) -> np.ndarray:
        return _gaussian_window(values)[inner] / total

    pred_mean, gt_mean = local_mean(pred), local_mean(gt)
    pred_var = local_mean(pred * pred) - pred_mean**2
    gt_var = local_mean(gt * gt) - gt_mean**2
    cov = local_mean(pred * gt) - pred_mean * gt_mean
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * pred_mean * gt_mean + c1) * (2 * cov + c2)
    return float((score / ((pred_mean**2 + gt_mean**2 + c1) * (pred_var + gt_var + c2))).mean())


def local_mse(pred: np.ndarray, gt: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
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


def whdr(albedo: np.ndarray, judgements: dict, threshold: float = 0.10) -> float:
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
            if min(p[axis] for p in pair for axis in "xy") < 0:
                raise IndexError("a point outside the image")  # an index below 0 would count from the other side
            first, second = (max(1e-10, lightness[int(p["y"] * rows), int(p["x"] * cols)]) for p in pair)
            guess = "1" if second / first > 1 + threshold else "2" if first / second > 1 + threshold else "E"
            wrong += weight * (guess != verdict)
            total += weight
    except (KeyError, IndexError, TypeError, OverflowError) as error:
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


def colour_evidence(
    values: np.ndarray, truth: np.ndarray | None = None, known: np.ndarray | None = None, space: str = "srgb"
) -> Evidence:
    """values (H,W,3) or (H,W): albedo or shading in `space`; truth: the same shape, linear.

    errors: (curve, order) -> RMSE in linear light after one scale, relative to the truth's root mean square. curve:
    "as is", "encode" (values were decoded once too often) or "decode"; order: "rgb" or "bgr".
    """
    p, g = sample(np.atleast_3d(values), None if truth is None else np.atleast_3d(truth), known)
    odd = ("255",) if space == "srgb" and np.percentile(p, 99) > 16 else ("normals",) if _are_normals(p) else ()
    if g is None or len(g) < 16 or odd:
        return Evidence({}, odd=odd)
    size = np.sqrt(np.square(g).mean())
    if not size > 0:
        return Evidence({}, odd=odd)
    linear = to_linear(p) if space == "srgb" else p
    errors: dict[tuple, float] = {}
    for curve, apply in (("as is", lambda v: v), ("encode", to_srgb), ("decode", to_linear)):
        for order in ("rgb", "bgr") if p.shape[1] == 3 else ("rgb",):
            one = apply(linear if order == "rgb" else linear[:, ::-1])
            scale = align_scale(one[None], g[None], np.ones((1, len(g)), bool))
            errors[curve, order] = float(np.sqrt(np.square(scale * one - g).mean()) / size)
    return Evidence(errors, float(np.sqrt(np.square(g - g.mean(axis=0)).mean()) / size))


def _are_normals(v: np.ndarray) -> bool:
    """True if colours (N,3) in [0,1] are encoded unit vectors of several directions."""
    if v.shape[1] != 3 or not len(v) or (np.ptp(v, axis=1) > SPREAD).mean() < 0.25:
        return False
    n = 2 * v - 1
    length = np.linalg.norm(n, axis=1)
    directions = n / np.maximum(length, 1e-12)[:, None]
    return bool((np.abs(length - 1) < 0.08).mean() > 0.75 and np.linalg.norm(directions.mean(axis=0)) < 0.97)


def _fit_colour(values: np.ndarray, truth: np.ndarray, space: str, truth_space: str) -> tuple[float, float]:
    """Relative errors of colours (N,C) in `space` after one scale, and of a constant; for `Fit`."""
    truth = convert_space(truth, truth_space, "linear")
    found = colour_evidence(values[:, None], truth[:, None], space=space)
    return found.errors.get(("as is", "rgb"), np.nan), found.constant


def colour_findings(evidence: Sequence[Evidence]) -> list[Finding]:
    if odd := odd_finding(evidence, ODD_COLOURS):
        return [odd]
    found = best_finding(evidence, ("as is", "rgb"), "(relative)")
    if found is None:
        return []
    curve, order = found.key
    words = {
        "as is": "",
        "encode": "not undoing the sRGB curve (values that are linear already)",
        "decode": "undoing the sRGB curve once more",
    }[curve]
    swap = "swapping red and blue (BGR channel order)" if order == "bgr" else ""
    return [replace(found, change=" and ".join(part for part in (words, swap) if part))]


def _flags_for(finding: Finding, rules: Rules) -> str:
    if finding.key == ("255",):
        return "divide them by 255"
    if finding.key == ("normals",):
        return f"pass predictions of {rules.intrinsic.name}"
    curve, order = finding.key
    flags = []
    if curve == "encode":  # what was decoded is linear already
        flags += ["--pred_space linear"] if rules.pred_space == "srgb" else []
        flags += ["--gt_space srgb"] if rules.gt_space == "linear" else []
    elif curve == "decode":
        flags += ["--pred_space srgb"] if rules.pred_space == "linear" else []
        flags += ["--gt_space linear"] if rules.gt_space == "srgb" else []
    parts = [f"pass {' or '.join(flags)}, whichever is true of the files"] if flags else []
    parts += ["re-export them with the curve applied once"] if curve != "as is" and not flags else []
    parts += ["re-export them in RGB order (cv2.imwrite takes BGR)"] if order == "bgr" else []
    return "; ".join(parts)
