"""Depth (H,W): affine in metres, near = large. Its arithmetic is in alignment.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from utils.errors import InputError
from utils.image_io.files import Raw, read_npy
from utils.image_io.panels import black, grey, row_blocks, spectral, stretched, to_byte
from utils.intrinsics import DEPTH_CODINGS
from utils.kinds.alignment import (
    align_depth,
    align_members,
    aligned,
    depth_evidence,
    depth_findings,
    depth_metrics,
    fit_depth,
)
from utils.kinds.base import Contradiction, ErrorAxis, MapKind, Rules, finite_rule
from utils.kinds.evidence import Evidence, Finding, Fit

if TYPE_CHECKING:
    from torch import Tensor

# The largest numbers of uint16 and of float16, "no measurement" in many sets, and what is left of them after a
# division by the units that sets use per metre.
SATURATED = [top / units for top in (65535.0, 65504.0) for units in (1, 10, 100, 256, 1000)]
FAR = [float(f"1e{power}") for power in range(3, 9)] + [10.0**digits - 1 for digits in range(3, 9)]  # 1000, 999, ...
BEYOND = 1e9  # metres: nothing that a camera sees is a million kilometres away
NEAREST_MEDIAN = 0.02  # metres: below it, --gt_depth_scale was probably applied to metres
FARTHEST_MEDIAN = 300.0  # metres: true depth beyond it is taken for millimetres
REPEATS = 10  # pixels on which a saturated value must repeat where the next one is not far below it
KITTI_CROP = (352, 1216)


class DepthRule(NamedTuple):
    """How one data set is scored: clipping range in metres, and which ground truth counts."""

    min_depth: float | None
    max_depth: float | None
    in_range: bool  # only min < gt < max is valid
    needs_mask: bool = False
    fit_side: int | None = None  # fit scale and shift on a copy of at most that many pixels a side


DEPTH_RULES = {  # Marigold (2312.02145), section 4.1, and its released evaluation
    "plain": DepthRule(None, None, in_range=False),
    "diode": DepthRule(0.6, 350.0, in_range=False, needs_mask=True),
    "nyuv2": DepthRule(1e-3, 10.0, in_range=True),
    "kitti": DepthRule(1e-5, 80.0, in_range=True),
    "eth3d": DepthRule(1e-5, math.inf, in_range=True, fit_side=1024),
    "scannet": DepthRule(1e-3, 10.0, in_range=True),
}


class Depth(MapKind):
    """One number without scale, shift or zero point: maps are aligned before they are averaged or scored."""

    truth_channels = 1
    protocols = tuple(DEPTH_RULES)
    evaluation_flags = ("align", "gt_depth_scale")
    output_flags = ("invert_depth",)
    label_codings = tuple(DEPTH_CODINGS)
    in_diode = True
    diode_mask = "_depth_mask.npy"
    label_is_truth = False
    reference = True
    stretched = True
    has_surface = True
    fits_constant = True
    axis = ErrorAxis("relative error |p − g| / g", "", 1000, 10, 1.0, 0.5, (0.05, 0.1, 0.25))
    units: Mapping[str, str] = {"rmse": "m", "sq_rel": "m", "silog": "× 100"}
    known_rule = "finite, > 0, and not a code of unknown depth such as 65535"

    # Reading -------------------------------------------------------------------------------------------------------

    def decode(self, raw: Raw) -> np.ndarray:
        """Depth in the file's unit."""
        array, name = raw.array, raw.array.dtype
        if array.ndim != 2:
            raise ValueError(f"has shape {array.shape}: depth needs one channel, not a colour image")
        if name.kind == "b":
            raise ValueError("holds bool: depth is a number")
        values = array.astype(np.float64)
        if "value_at_0" in raw.about and name == np.uint16:  # this project's own 16 bits
            low, high = (float(raw.about[key]) for key in ("value_at_0", "value_at_65535"))
            values = low + values / 65535 * (high - low)
        return values

    def one_channel(self, raw: Raw) -> Raw:
        if raw.array.ndim == 3 and (raw.array == raw.array[..., :1]).all():
            return raw._replace(array=raw.array[..., 0])
        return raw

    def check_truth(self, raw: Raw, path: Path, units_per_metre: float | None, advice: str) -> None:
        """ValueError for depth whose unit nobody has stated."""
        if "polarity" in raw.about:
            raise ValueError(f"is a prediction, not metres (its header: {raw.about['polarity'][:80]})")
        png = path.suffix.lower() == ".png"
        if raw.array.dtype == np.uint8:
            what = "image" if png else "array"
            raise ValueError(f"is an 8-bit {what}, too coarse for metres: give .npy in metres or a 16-bit .png")
        if raw.array.dtype.kind != "f" and units_per_metre is None:
            what = "is a 16-bit .png of unknown unit" if png else f"holds {raw.array.dtype}, depth of unknown unit"
            raise ValueError(f"{what}: {advice}")

    def in_units(self, values: np.ndarray, units_per_metre: float) -> np.ndarray:
        """Metres. ValueError where depth counts against the viewing direction; one negative number is a code."""
        negative = values[np.isfinite(values) & (values < 0)]
        most = 2 * negative.size > np.count_nonzero(np.isfinite(values) & (values != 0))
        if most and negative.min() != negative.max():
            raise ValueError(
                f"depth is negative on {negative.size} of {values.size} pixels: the camera looks along -z; negate it "
                "(np.save(file, -depth))"
            )
        return values / units_per_metre

    def unknown_rules(
        self, raw: np.ndarray, known: np.ndarray, units: float, prediction: bool
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Of measured depth; a prediction has no zero point."""
        yield from finite_rule(raw)
        if prediction:
            return
        yield "0", raw == 0
        if raw.dtype.kind != "u":
            negative = raw < 0
            values = raw[negative & known]
            one = values.size and (values == values[0]).all()
            yield f"{values[0]:g}" if one else "negative", negative
        if raw.dtype.kind == "f":
            yield f"{BEYOND:g} m or more", raw >= np.float64(BEYOND * units)  # not float16, which would overflow
        else:
            yield f"{np.iinfo(raw.dtype).max}, the format's largest", raw == np.iinfo(raw.dtype).max
        while (code := _sentinel(raw, known, units)) is not None:
            yield f"{code:.7g}, far behind the rest", raw == code

    def read_diode(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """DIODE's *_depth.npy and *_depth_mask.npy next to it -> (metres (H,W,1); where known, inside the mask)."""
        mask_path = path.with_name(path.name.replace("_depth.npy", self.diode_mask))
        depth, mask = read_npy(path), read_diode_mask(mask_path)
        depth = depth[..., 0] if depth.ndim == 3 and depth.shape[2] == 1 else depth
        if depth.ndim != 2 or depth.dtype.kind != "f":
            raise InputError(f"{path}: {depth.dtype} {depth.shape}, expected float (H, W, 1) metres")
        if mask.shape != depth.shape:
            raise InputError(f"{mask_path}: a mask of shape {mask.shape} next to depth of shape {depth.shape}")
        return depth[..., None], self.known_pixels(depth, mask).pixels

    def read_own(self, path: Path, mask: Path | None, frame: str) -> tuple[np.ndarray, np.ndarray]:
        advice = "save metres as floats: divide by 1000 if these are millimetres, by 256 if they are KITTI's"
        if path.suffix.lower() == ".png":
            raise InputError(f"{path}: ground truth depth is read from .npy in metres only (or .exr); {advice}")
        found = self.read_truth(path, mask, advice=advice)
        return self.filled(found.values[..., None], found.known)

    def truth_median(self, values: np.ndarray) -> float | None:
        return float(np.median(values))

    def truth_warnings(self, medians: Sequence[float], units_per_metre: float | None) -> list[str]:
        typical = float(np.median(medians))
        what = f"the median of the true depth is {typical:.4g} m"
        if typical > FARTHEST_MEDIAN:
            return [f"{what}: are these millimetres? --gt_depth_scale 1000 reads them"]
        if units_per_metre is not None and typical < NEAREST_MEDIAN:
            return [f"the median of the true depth is {typical:.2g} m: is --gt_depth_scale {units_per_metre:g} right?"]
        return []

    def check_record(self, words: str, facts: Mapping[str, str], use: Any, where: Path | str) -> list[str]:
        coding = facts.get("depth_coding", "linear")
        if coding != use.coding:
            raise Contradiction("coding", f"these labels have {coding} depth, not {use.coding}", coding)
        if "near = black" in words:
            raise Contradiction("polarity", "depth with near = black, not white", "near = black")
        if "disparity" in words and use.align == "depth":
            raise Contradiction("align", "affine in disparity, not in depth", "disparity")
        if "disparity" in words and use.align is None:
            return [f"{where}: labels of disparity, so predictions will be too: evaluate.py --align disparity"]
        return []

    # Display -------------------------------------------------------------------------------------------------------

    def image8(self, prediction: Tensor) -> np.ndarray:
        """uint8 (H,W): min-max over all three channels, mean over channels, truncated.

        The released inference's rule. A constant map has no range to stretch and comes out black.
        """
        planes = prediction.detach().float().cpu().numpy()
        low, high = planes.min(), planes.max()
        span = np.maximum(high - low, np.finfo(np.float32).tiny)
        found = np.empty(planes.shape[1:], np.uint8)
        for rows in row_blocks(*found.shape):
            share = planes[:, rows] - low
            share /= span
            mean = share[0] + share[1]
            mean += share[2]
            mean /= np.float32(3)
            mean *= np.float32(255)
            found[rows] = mean
        return found

    def values(self, prediction: Tensor) -> np.ndarray:
        """float32 (H,W), affine in metres, near = large."""
        return prediction.float().mean(0).cpu().numpy()

    def truth_panel(self, gt: Tensor, valid: Tensor) -> Tensor:
        """Depth (1,H,W) in metres -> label-like: near = white, invalid black.

        Linear between the 1st and 99th percentile of the valid depths, clipped: no value wraps around, no invalid zero
        moves the range (both happen in the released code).
        """
        import torch

        if not valid.any():
            return black(gt.expand(3, -1, -1))
        near, far = np.percentile(gt[valid].double().numpy(), [1, 99])
        shade = 1 - ((gt - near) / max(far - near, 1e-6)).clamp(0, 1)
        return torch.where(valid, 2 * shade - 1, -1.0).expand(3, -1, -1)

    def shown(self, values: np.ndarray, frame: str = "opengl") -> dict[str, np.ndarray]:
        """Two images, coloured and grey."""
        near, name = stretched(values), self.intrinsic.name
        return {name: spectral(1 - near), f"{name}, grey": to_byte(np.repeat(near[..., None], 3, axis=2))}

    def legend(self, colours: str, convention: str) -> str | None:
        return "depth is shown from red, near, to blue, far, and in grey, near white: 2nd to 98th percentile"

    # Averaging, tiles ----------------------------------------------------------------------------------------------

    def merge(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over channels, each member aligned by scale and shift, then the median; uncertainty is the median
        absolute deviation, in units of the map.
        """
        return super().merge(align_members(members.float().cpu().mean(1))[:, None])

    def tile(self, prediction: Tensor, reference: Tensor | None) -> Tensor:
        """On the scale and shift of the reference."""
        one = grey(prediction)
        return one if reference is None else aligned(one, reference)

    # Files that inference writes -----------------------------------------------------------------------------------

    def convention(self, output: Any) -> tuple[str, str]:
        key, meaning = self.intrinsic.convention
        return key, meaning.replace("near = white", "near = black") if output.invert_depth else meaning

    def turned(self, prediction: Tensor, output: Any) -> Tensor:
        return -prediction if output.invert_depth else prediction

    def exr(self, values: np.ndarray, about: dict[str, str]) -> tuple[np.ndarray, str, dict[str, str]]:
        """Twice: Blender shows Z alone as black, and reads Y."""
        return np.stack([values, values], axis=-1), "ZY", about

    def shares(self, values: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
        low, high = float(values.min()), float(values.max())
        return (values - low) / max(high - low, 1e-12), {"value_at_0": repr(low), "value_at_65535": repr(high)}

    # Scores --------------------------------------------------------------------------------------------------------

    def score(self, prediction: Tensor, gt: Tensor, valid: Tensor, protocol: str) -> dict[str, float] | None:
        """On the protocol's range; gt (1,H,W) in metres."""
        inside = valid[0].numpy()
        if not inside.any():
            return None
        rule, values = DEPTH_RULES[protocol], prediction.mean(0).numpy()
        return depth_metrics(values, gt[0].numpy(), inside, "depth", rule.min_depth, rule.max_depth)

    def score_text(self, protocol: str) -> str:
        text = "Affine-invariant depth errors of the mean over channels, on `protocol`'s range; gt (1,H,W) in metres."
        return f"{text} (protocol: {protocol})"

    def label_truth(self, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing is valid: a label has no metres."""
        import torch

        return torch.zeros_like(target[:1]), torch.zeros_like(valid)

    def needs_mask(self, protocol: str) -> bool:
        return DEPTH_RULES[protocol].needs_mask

    def protocol_rule(self, protocol: str) -> str:
        rule = DEPTH_RULES[protocol]
        text = f", and {rule.min_depth} < depth < {rule.max_depth}" if rule.in_range else ""
        return text + (", and inside the Eigen crop" if protocol in ("nyuv2", "kitti") else "")

    def settings(self, rules: Rules) -> dict:
        rule = DEPTH_RULES[rules.protocol]
        limits = [rule.min_depth, rule.max_depth]
        return {"align": rules.align, "clip_prediction": limits, "gt_depth_scale": rules.gt_depth_scale}

    def scored_pixels(self, gt: np.ndarray, known: np.ndarray, rules: Rules) -> tuple[tuple[slice, slice], np.ndarray]:
        window, _ = super().scored_pixels(gt, known, rules)
        if rules.protocol == "kitti":
            window = kitti_window(known.shape)
        inside = np.zeros(known.shape, bool)
        inside[window] = self.depth_valid(gt[window], rules.protocol, known[window])
        return window, inside

    def depth_valid(self, gt: np.ndarray, protocol: str, mask: np.ndarray | None = None) -> np.ndarray:
        """Pixels of a depth map (H, W), metres, that `protocol` scores: bool (H, W).

        Always known (`known_pixels`), and inside `mask` if there is one; by protocol also inside the open depth range
        and the crop of the evaluation: NYUv2 rows 45:471 and columns 41:601 of 480 x 640, KITTI the Eigen crop of the
        benchmark crop.
        Raises ValueError for an NYUv2 map of another size.
        """
        rule = DEPTH_RULES[protocol]
        valid = self.known_pixels(gt, mask).pixels
        if rule.in_range:
            valid &= (gt > rule.min_depth) & (gt < rule.max_depth)
        crop: slice | tuple[slice, slice] = np.s_[:]
        if protocol == "nyuv2":
            if gt.shape != (480, 640):
                size = f"{gt.shape[0]}x{gt.shape[1]}"
                raise ValueError(f"is {size}, but the crop of --protocol nyuv2 is for 480x640: use --protocol plain")
            crop = np.s_[45:471, 41:601]
        elif protocol == "kitti":
            height, width = gt.shape
            rows = slice(int(0.3324324 * height), int(0.91351351 * height))
            crop = rows, slice(int(0.0359477 * width), int(0.96405229 * width))
        inside = np.zeros_like(valid)
        inside[crop] = True
        return valid & inside

    def metrics(self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> dict[str, float]:
        if np.count_nonzero(valid) < 3:
            raise ValueError("fewer than 3 valid pixels: scale and shift would fit them perfectly")
        rule = DEPTH_RULES[rules.protocol]
        return depth_metrics(pred, gt, valid, rules.align, rule.min_depth, rule.max_depth, rule.fit_side)

    def compare(
        self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules
    ) -> tuple[np.ndarray, np.ndarray]:
        """Errors |p - g| / g."""
        rule = DEPTH_RULES[rules.protocol]
        fitted = align_depth(pred, gt, valid, rules.align, rule.min_depth, rule.max_depth, rule.fit_side)
        return fitted, np.abs(fitted - gt) / np.where(valid, gt, 1)

    def figures(self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> tuple[list, str]:
        near, far = np.percentile(gt[valid], [2, 98])
        span = max(far - near, 1e-9)
        maps = [np.repeat((far - m)[..., None] / span, 3, 2) for m in (pred, gt)]
        return maps, f"white {near:.2f} m, black {far:.2f} m"

    # Convention check ----------------------------------------------------------------------------------------------

    def evidence(self, pred: np.ndarray, gt: np.ndarray, rules: Rules) -> tuple[Evidence | None, Evidence | None]:
        return depth_evidence(pred, gt[..., 0]), None

    def findings(self, evidence: Sequence[Evidence], rules: Rules) -> list[Finding]:
        return depth_findings(evidence, domain=rules.align, polarity=False)

    def flags_for(self, finding: Finding, rules: Rules) -> str:
        domain = finding.key[-1]
        return f"pass --align {domain}" if domain in ("depth", "disparity") else "re-export them linear in depth"

    def placement_fit(
        self, space: str = "srgb", coding: str = "linear", domain: str = "depth", truth_space: str = "linear"
    ) -> Fit:
        return Fit(partial(fit_depth, coding=coding, domain=domain))

    def value_findings(self, triples: Sequence[tuple]) -> list[Finding]:
        return depth_findings([depth_evidence(*one) for one in triples])

    def label_evidence(self, label: np.ndarray, truth: np.ndarray | None, known: np.ndarray | None) -> Evidence:
        codings = ("linear", "log", "sqrt")
        return depth_evidence(label / 2 + 0.5, None if truth is None else truth[..., 0], known, codings)

    def label_findings(self, evidence: Sequence[Evidence]) -> list[Finding]:
        return depth_findings(evidence, self.intrinsic.depth_coding)

    def label_fix(self, finding: Finding) -> str:
        key = finding.key
        if key == ("inverted",):
            return "re-export them with near = white (255 - grey), or make them with pseudo_label.py --predicts depth"
        if key == ("colours",):
            return "re-export the depth itself, grey, near = white"
        if key[1] == "depth":
            return f"pass --depth_coding {key[0]}"
        if key[1] == "disparity":
            return (
                "make labels linear in depth (pseudo_label.py with a depth teacher); a LoRA of disparity is scored "
                "with --align disparity"
            )
        return "re-export them linear in depth, near = white"


KIND = Depth


def _sentinel(raw: np.ndarray, known: np.ndarray, units: float) -> float | None:
    """The map's largest depth if it is a code of "no measurement", not a distance; else None.

    It must be one of the numbers that sets use, exactly, and twice as far as the next depth. The largest number of
    16 bits is also a code where it repeats: a sensor that saturates there measured nothing.
    """
    largest = np.max(raw, where=known, initial=0)
    close = 1e-3 if raw.dtype == np.float16 else 1e-6
    number = float(largest)
    saturated = any(abs(size - code) <= close * code for code in SATURATED for size in (number, number / units))
    if not saturated and not any(abs(number / units - code) <= close * code for code in FAR):
        return None
    others = known & (raw != largest)
    following = float(np.max(raw, where=others, initial=0))
    if 0 < 2 * following <= number:
        return number
    repeats = np.count_nonzero(known & (raw == largest))
    return number if saturated and repeats >= REPEATS else None


def kitti_window(shape: tuple[int, int]) -> tuple[slice, slice]:
    """The bottom centre 352 x 1216 of an image of `shape`: KITTI's own benchmark crop. ValueError if smaller."""
    height, width = KITTI_CROP
    if shape[0] < height or shape[1] < width:
        raise ValueError(f"is {shape[0]}x{shape[1]}, smaller than KITTI's crop of 352x1216: use --protocol plain")
    left = (shape[1] - width) // 2
    return slice(shape[0] - height, shape[0]), slice(left, left + width)


def read_diode_mask(path: Path) -> np.ndarray:
    """DIODE's *_depth_mask.npy -> bool (H,W), not zero = measured; its dtype varies between DIODE's files."""
    mask = read_npy(path)
    mask = mask[..., 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask
    if mask.ndim != 2 or mask.dtype.kind not in "buif":
        raise InputError(f"{path}: {mask.dtype} {mask.shape}, expected a mask of numbers (H, W)")
    return mask.astype(bool)
