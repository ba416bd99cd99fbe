"""Surface normals: unit vectors (H,W,3), x right, y down, z forward (opencv)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import InputError
from utils.image_io.files import Raw, read_npy
from utils.image_io.panels import row_blocks, to_byte
from utils.kinds.axes import (
    convert_frame,
    fit_normals,
    flag_for,
    frame_in,
    frame_of,
    normals_evidence,
    normals_findings,
    to_frame,
    unit_vectors,
)
from utils.kinds.base import NOT_FINITE, Contradiction, ErrorAxis, Known, Map, MapKind, Rules, Scored, require_values
from utils.kinds.evidence import Evidence, Finding, Fit
from utils.kinds.frames import AXES, FRAMES

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLDS = (5, 7.5, 11.25, 22.5, 30)  # degrees
BINS_PER_DEGREE = 20
ANGLE_BINS = 180 * BINS_PER_DEGREE + 1  # the last bin holds exactly 180


class Normals(MapKind):
    """Vectors without a length: averages are means of directions, errors are angles in degrees."""

    protocols = ("pooled", "per_image")
    evaluation_flags = ("pred_frame", "gt_frame")
    output_flags = ("frame",)
    has_axes = True
    in_diode = True
    diode_gap = True
    labels_have_gaps = True
    uncertain = 45.0  # degrees
    same_below = 15.0
    axis = ErrorAxis("angular error", "°", BINS_PER_DEGREE, 20, 180.0, 60.0, THRESHOLDS)
    units: Mapping[str, str] = {"mean": "degrees", "median": "degrees", "rmse": "degrees", "below": "%"}
    known_rule = "finite and longer than 0; in 8 and 16 bits not black, white or mid-grey"

    # Reading -------------------------------------------------------------------------------------------------------

    def decode(self, raw: Raw) -> np.ndarray:
        """Vectors in [-1,1]."""
        array, name = raw.array, raw.array.dtype
        if name.kind != "f" and name not in (np.uint8, np.uint16):
            raise ValueError(f"holds {name}: give floats, or 8 or 16 bits")
        if array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"has shape {array.shape}: normals need (H, W, 3)")
        if name == np.uint8:
            return array * np.float32(2 / 255) - np.float32(1)
        return array if name.kind == "f" else array * (2 / 65535) - 1

    def known_pixels(self, raw: np.ndarray, *args: Any, **options: Any) -> Known:
        if raw.ndim != 3 or raw.shape[-1] != 3:
            raise ValueError(f"normals need a last axis of 3, not shape {raw.shape}")
        return super().known_pixels(raw, *args, **options)

    def unknown_rules(
        self, raw: np.ndarray, known: np.ndarray, units: float, prediction: bool
    ) -> Iterator[tuple[str, np.ndarray]]:
        """A unit vector never has three components of 0 or three of +-1: these are codes of "no normal here"."""
        planes = list(np.moveaxis(raw, -1, 0))  # plane by plane: reductions over a last axis of 3 are far slower
        if raw.dtype.kind != "f":
            top = np.iinfo(raw.dtype).max
            low, high = (top - top // 255) // 2, (top + top // 255) // 2  # 127 and 128 of 255: the zero vector
            yield "black", _all(plane == 0 for plane in planes)
            yield "mid-grey", _all((plane >= low) & (plane <= high) for plane in planes)
            yield "white", _all(plane == top for plane in planes)
            return
        yield NOT_FINITE, ~_all(map(np.isfinite, planes))
        yield "zero vector", _all(plane == 0 for plane in planes)
        # 8-bit codes that somebody decoded with 2 v / 255 - 1 before saving floats, whatever axes were flipped since
        size = np.abs(planes[0])
        if (size == 1).any():
            yield "decoded black or white", _all(np.abs(plane) == 1 for plane in planes)
        if (np.abs(size - 1 / 255) < 4e-6).any():
            yield "decoded mid-grey", _all(np.abs(np.abs(plane) - 1 / 255) < 4e-6 for plane in planes)

    def as_map(self, raw: Raw, values: np.ndarray, known: Known) -> Map:
        if not known.pixels.all():
            values = np.where(known.pixels[..., None], values, np.zeros((), values.dtype))
        return super().as_map(raw, values, known)

    def read_diode(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """DIODE's *_normal.npy -> (unit normals (H,W,3), opencv, as Omnidata v2 predicts them; valid, bool (H,W)).

        DIODE's raw frame is x right, y up, z toward the viewer (OpenGL), so Y and Z are negated. Raw vectors are not
        always of unit length.
        """
        raw = _read_vectors(path)
        valid = self.known_pixels(raw).pixels
        normals = np.zeros(raw.shape)
        normals[valid] = unit_vectors(raw[valid]) * (1, -1, -1)
        return normals, valid

    def known_in_diode(self, path: Path) -> np.ndarray:
        return self.known_pixels(_read_vectors(path)).pixels  # their lengths take five times as long

    def read_own(self, path: Path, mask: Path | None, frame: str) -> tuple[np.ndarray, np.ndarray]:
        found = self.read_truth(path, mask)
        values = np.where(found.known[..., None], unit_vectors(found.values), 0)
        return self.filled(convert_frame(values, frame), found.known)

    def facing_away(self, values: np.ndarray) -> float | None:
        """Of those that clearly face one way: near the image's border, a floor's z can have either sign."""
        z = values[:, 2][np.abs(values[:, 2]) > 0.3]
        return float((z > 0).mean()) if len(z) else None

    def check_record(self, words: str, facts: Mapping[str, str], use: Any, where: Path | str) -> list[str]:
        stated = frame_in(words)
        if stated is not None and FRAMES[stated] != FRAMES.get(use.frame, use.frame):
            raise Contradiction("frame", f"{self.intrinsic.name} in {stated}, not {use.frame}", stated)
        unclear = f"{where}: the frame {words!r} is not known here; the maps are taken for {use.frame}"
        return [unclear] if words and stated is None else []

    # Display -------------------------------------------------------------------------------------------------------

    def values(self, prediction: Tensor) -> np.ndarray:
        """float32 (H,W,3), unit vectors, opencv."""
        values = unit_normals(prediction.float())  # then contiguous: numpy writes other arrays four times as slowly
        return (values.mean(0) if self.intrinsic.grey else values.permute(1, 2, 0).contiguous()).cpu().numpy()

    def truth_panel(self, gt: Tensor, valid: Tensor) -> Tensor:
        import torch

        return torch.where(valid, gt, -1.0)

    def shown(self, values: np.ndarray, frame: str = "opengl") -> dict[str, np.ndarray]:
        return {self.intrinsic.name: to_byte(to_frame(values, frame) / 2 + 0.5)}

    def legend(self, colours: str, convention: str) -> str | None:
        return f"normals are shown in {colours} axes; the files hold {convention}"

    # Resizing, averaging, tiles ------------------------------------------------------------------------------------

    def resized(self, prediction: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
        """As directions, which come out with length 1."""
        return unit_normals(resize(unit_normals(prediction)), in_place=True)

    def mirrored_mean(self, plain: Tensor, mirrored: Tensor) -> Tensor:
        """Of directions; x points the other way in a mirrored image."""
        import torch
        from torch.nn.functional import normalize

        mirrored = mirrored * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
        plain, mirrored = (normalize(maps, dim=1, eps=1e-12) for maps in (plain, mirrored))
        return normalize(plain + mirrored, dim=1, eps=1e-12)

    def merge(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """The mean direction; uncertainty is the members' mean angle to it, in degrees."""
        import torch

        members = torch.stack([unit_normals(one) for one in members.float().cpu()])
        merged = torch.nn.functional.normalize(members.sum(0), dim=0, eps=1e-12)
        # by sine and cosine: acos alone turns rounding near 0 into hundredths of a degree
        sine = torch.linalg.cross(members, merged.expand_as(members), dim=1).norm(dim=1)
        angles = torch.rad2deg(torch.atan2(sine, (members * merged).sum(1)))
        return merged, angles.mean(0)

    def tile(self, prediction: Tensor, reference: Tensor | None) -> Tensor:
        return unit_normals(prediction)

    def untiled(self, total: Tensor) -> Tensor:
        return unit_normals(total)

    # Files that inference writes -----------------------------------------------------------------------------------

    def convention(self, output: Any) -> tuple[str, str]:
        return self.intrinsic.convention[0], f"{output.frame} ({AXES[output.frame]})"

    def turned(self, prediction: Tensor, output: Any) -> Tensor:
        import torch

        if output.frame == "opencv":
            return prediction
        return torch.from_numpy(to_frame(prediction.permute(1, 2, 0).numpy(), output.frame)).permute(2, 0, 1)

    def exr(self, values: np.ndarray, about: dict[str, str]) -> tuple[np.ndarray, str, dict[str, str]]:
        return values, "XYZ", about

    def shares(self, values: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
        return values / 2 + 0.5, {"value_at_0": "-1", "value_at_65535": "1"}

    # Scores --------------------------------------------------------------------------------------------------------

    def score(self, prediction: Tensor, gt: Tensor, valid: Tensor, protocol: str) -> dict[str, float] | None:
        """Both in the label's frame. A vector of length zero points nowhere and counts as 90 degrees off."""
        inside = valid[0].numpy()
        if not inside.any():
            return None
        angles = angular_error(prediction.permute(1, 2, 0).numpy()[inside], gt.permute(1, 2, 0).numpy()[inside])
        return normal_metrics(np.nan_to_num(angles, nan=90.0))

    def score_text(self, protocol: str) -> str:
        return "Angles in degrees between the predicted normals and gt, both in the label's frame."

    def label_truth(self, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors."""
        return unit_normals(target), valid

    def settings(self, rules: Rules) -> dict:
        return {"pred_frame": rules.pred_frame, "gt_frame": rules.gt_frame}

    def truth_values(self, values: np.ndarray, path: Path, rules: Rules) -> np.ndarray:
        return convert_frame(values, rules.gt_frame)

    def prediction_values(self, values: np.ndarray, path: Path, rules: Rules) -> np.ndarray:
        return convert_frame(values, rules.pred_frame)

    def fitted(self, pred: np.ndarray, gt: np.ndarray, resized: bool) -> np.ndarray:
        return unit_vectors(pred) if resized else pred  # so that no long vector outweighs its neighbours

    def score_image(self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> Scored:
        pred, gt = pred.reshape(-1, 3), gt.reshape(-1, 3)
        if not valid.all():
            chosen = np.flatnonzero(valid)  # five times faster than indexing rows with a mask
            pred, gt = pred.take(chosen, axis=0), gt.take(chosen, axis=0)
        angles = angular_error(pred, gt)
        codes = " (in 8 and 16 bits: black, white and mid-grey)"
        require_values(np.isnan(angles), "NaN, inf or the zero vector", codes)
        metrics, angles = normal_metrics(angles), angles.astype(np.float32)
        errors = np.bincount(angle_bins(angles), minlength=ANGLE_BINS)
        # 4 bytes per pixel, for the pooled median alone
        return Scored(metrics, errors, angles if rules.protocol == "pooled" else None)

    def compare(
        self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules
    ) -> tuple[np.ndarray, np.ndarray]:
        """Errors in degrees."""
        return pred, angular_error(pred, gt)

    def summed(self, values: np.ndarray) -> np.ndarray:
        return unit_vectors(values)

    def constant(self, mean: np.ndarray) -> np.ndarray:
        if not np.linalg.norm(mean) > 1e-6:
            raise ValueError("the mean normal vanishes, so no constant can be predicted")
        return unit_vectors(mean)

    def figures(self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> tuple[list, str]:
        return [(unit_vectors(m) + 1) / 2 for m in (pred, gt)], "RGB = (n + 1) / 2, x right, y down, z forward"

    # Convention check ----------------------------------------------------------------------------------------------

    def evidence(self, pred: np.ndarray, gt: np.ndarray, rules: Rules) -> tuple[Evidence | None, Evidence | None]:
        truth = normals_evidence(to_frame(gt, rules.gt_frame))
        return normals_evidence(to_frame(pred, rules.pred_frame), gt), truth

    def findings(self, evidence: Sequence[Evidence], rules: Rules) -> list[Finding]:
        return normals_findings(evidence, rules.pred_frame)

    def truth_findings(self, truth: Sequence[Evidence], rules: Rules) -> list[Finding]:
        return normals_findings(truth, rules.gt_frame)

    def flags_for(self, finding: Finding, rules: Rules) -> str:
        return flag_for(finding, rules)

    def placement_fit(
        self, space: str = "srgb", coding: str = "linear", domain: str = "depth", truth_space: str = "linear"
    ) -> Fit:
        return Fit(fit_normals, "degrees", vectors=True)

    def value_findings(self, triples: Sequence[tuple]) -> list[Finding]:
        return normals_findings([normals_evidence(*one) for one in triples])

    def label_evidence(self, label: np.ndarray, truth: np.ndarray | None, known: np.ndarray | None) -> Evidence:
        return normals_evidence(label, truth, known)

    def label_findings(self, evidence: Sequence[Evidence]) -> list[Finding]:
        return normals_findings(evidence)

    def label_fix(self, finding: Finding) -> str:
        if frame := frame_of(finding):
            return (
                f"their axes are those of {frame}: make them with pseudo_label.py --frame {frame}, or re-export them "
                "with x right, y down, z forward (or the ground truth has other axes: --gt_frame)"
            )
        if finding.key == ("grey",):
            return "pass labels of normals (--pseudo_root), or train the script of what they are"
        return "re-export them as 255 (n / 2 + 0.5) in RGB order, n with x right, y down, z forward"


KIND = Normals


def unit_normals(prediction: Tensor, in_place: bool = False) -> Tensor:
    """A predicted normal map (3,H,W), not clamped -> unit vectors (3,H,W) in the label's frame.

    in_place: the result may take the memory of `prediction`.
    """
    import torch
    from torch.nn.functional import normalize

    prediction = prediction.float()
    channels_last = prediction.stride(0) == 1  # PyTorch adds the squares in another order there
    if prediction.device.type != "cpu" or prediction.requires_grad or channels_last:
        return normalize(prediction, dim=0, eps=1e-12)
    # the same numbers, ten times faster: PyTorch's norm over a first axis uses neither caches nor vector instructions
    planes = prediction.numpy()
    found = planes if in_place else np.empty_like(planes, order="C")
    for rows in row_blocks(*planes.shape[1:]):
        x, y, z = planes[:, rows]
        length = x * x
        length += y * y
        length += z * z
        np.maximum(np.sqrt(length, out=length), np.float32(1e-12), out=length)
        np.divide(planes[:, rows], length, out=found[:, rows])
    return torch.from_numpy(found)


def _read_vectors(path: Path) -> np.ndarray:
    """DIODE's *_normal.npy as stored, float (H,W,3)."""
    raw = read_npy(path)
    if raw.ndim != 3 or raw.shape[2] != 3 or raw.dtype.kind != "f":
        raise InputError(f"{path}: {raw.dtype} {raw.shape}, expected float (H, W, 3) normals")
    return raw


def _all(planes: Iterable[np.ndarray]) -> np.ndarray:
    """The pixels that are true in every plane."""
    found, *others = planes
    for plane in others:
        found = found & plane
    return found


def angular_error(pred: np.ndarray, gt: np.ndarray) -> np.ndarray:
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


def normal_metrics(angles: np.ndarray) -> dict[str, float]:
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
    for threshold in THRESHOLDS:
        scores[f"below_{threshold}"] = 100.0 * int(np.count_nonzero(angles < threshold)) / angles.size
    return scores


def angle_bins(angles: np.ndarray) -> np.ndarray:
    """Bin of each float32 angle in degrees, 0.05 wide; never decreasing in the angle."""
    return (angles * np.float32(BINS_PER_DEGREE)).astype(np.int32)
