"""The interface of every kind of map. A kind is one module here: normals.py, depth.py, colour.py.

The record of an intrinsic (utils/intrinsics.py) names its kind, and `intrinsic.map_kind` is that module's `KIND` for
the intrinsic. Whatever depends on the kind of a map is an attribute or a method of `MapKind`, so that no other module
asks which kind it deals with. A new kind is a new module and a record that names it.

A *prediction* is a tensor (3,H,W), about [-1,1] and not clamped, as the network gives it. *Values* are the numpy array
that it stands for. numpy is imported here, torch only inside functions: the evaluation does without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from utils.errors import InputError
from utils.image_io.files import Raw, read_mask_named, read_npy, read_raw
from utils.image_io.panels import black, grey, to_byte, to_uint8
from utils.kinds.evidence import Evidence, Finding, Fit

if TYPE_CHECKING:
    from torch import Tensor

    from utils.intrinsics import Intrinsic

PROGRAM = "intrinsic-lora"  # how the header of this project's own files begins under "software"
OUTSIDE = "outside the mask"
NOT_FINITE = "NaN or inf"
UNIT_ADVICE = "give --gt_depth_scale, the units per metre (1000: millimetres, NYUv2; 256: KITTI)"
RELATIVE_BINS = 1001  # of errors in histograms: bins of 0.001, the last one holds everything from 1 up
HIGHER_IS_BETTER = ("below", "delta", "psnr", "ssim", "iou")  # how the names of these metrics begin


class Known(NamedTuple):
    """pixels: bool (H, W), true where the map has a value. unknown: reason -> pixels; each pixel is counted once."""

    pixels: np.ndarray
    unknown: dict[str, int]


class Map(NamedTuple):
    """One map that was read. values: normals (H, W, 3), depth (H, W) or colour (H, W) or (H, W, 3), float.

    known: bool (H, W). unknown: reason -> pixels that have no value. coded: the file holds whole numbers of 8 or 16
    bits, which for colours are sRGB-coded as images are, where floats are linear.
    """

    values: np.ndarray
    known: np.ndarray
    unknown: Mapping[str, int]
    coded: bool


class Rules(NamedTuple):
    """Everything that decides a score besides the files. Names and values are those of the command line."""

    intrinsic: Intrinsic
    protocol: str
    pred_frame: str = "opencv"
    gt_frame: str = "opencv"
    align: str = "depth"
    gt_depth_scale: float | None = None
    pred_space: str = "srgb"
    gt_space: str = "srgb"
    center_crop: bool = False

    @property
    def kind(self) -> MapKind:
        """The kind of the maps that are scored."""
        return self.intrinsic.map_kind


class ErrorAxis(NamedTuple):
    """How errors are plotted. per_unit: histogram bins per unit; bar: bins drawn as one bar."""

    label: str
    unit: str
    per_unit: int
    bar: int
    limit: float  # the last bin starts here and holds everything above
    map_limit: float  # error maps saturate here
    marks: tuple[float, ...]


class Scored(NamedTuple):
    """Metrics of one image, how many pixels fall into each bin of the error axis, and angles kept for a pool."""

    metrics: dict[str, float]
    errors: np.ndarray
    angles: np.ndarray | None = None


class MaskShapeError(ValueError):
    """A mask of another size than its map."""


class NoValueError(ValueError):
    """A prediction without a value on pixels that are scored: leaving them out would flatter it."""


class Contradiction(ValueError):
    """The record of a map contradicts its use. name: key of `Use.cures`, the advice. stated: by the record."""

    def __init__(self, name: str, what: str, stated: str):
        super().__init__(what)
        self.name, self.stated = name, stated


class MapKind:
    """The kind of one intrinsic's maps. The defaults suit plain numbers in [-1,1] or [0,1], such as colours.

    truth_channels: of measured values. protocols: of evaluate.py, the default first. evaluation_flags, output_flags:
    flags of evaluate.py and of inference that only this kind reads. label_codings: of --depth_coding. has_axes: the
    values have a camera frame. in_diode: DIODE measures it, with a mask in <stem>`diode_mask`; diode_gap: except for
    one scan. label_is_truth: a decoded label can take the place of measured values. labels_have_gaps: 8-bit labels can
    have pixels without a value. reference: tiles need a prediction of the whole image to agree with. stretched: 8-bit
    images span the least to the largest value of the map. has_surface: meshes can be made of it. fits_constant: the
    scores fit any constant to the truth. uncertain: the uncertainty that an image of it shows as white. same_below:
    the error of the best constant below which images look the same. axis: of errors. units: metric -> unit, also by
    the first word of its name. known_rule: which ground truth counts.
    """

    truth_channels = 3
    protocols: tuple[str, ...] = ("per_image",)
    evaluation_flags: tuple[str, ...] = ()
    output_flags: tuple[str, ...] = ()
    label_codings: tuple[str, ...] = ("linear",)
    has_axes = False
    in_diode = False
    diode_mask = ""
    diode_gap = False
    label_is_truth = True
    labels_have_gaps = False
    reference = False
    stretched = False
    has_surface = False
    fits_constant = False
    uncertain = 0.5
    same_below = 0.15
    axis = ErrorAxis("absolute error", "", 1000, 10, 1.0, 0.3, (0.05, 0.1, 0.25))
    units: Mapping[str, str] = MappingProxyType({})
    known_rule = "finite"

    def __init__(self, intrinsic: Intrinsic):
        self.intrinsic = intrinsic

    # Reading -------------------------------------------------------------------------------------------------------

    def decode(self, raw: Raw) -> np.ndarray:
        """Numbers as stored -> values. ValueError where the type or the shape does not fit."""
        raise NotImplementedError

    def unknown_rules(
        self, raw: np.ndarray, known: np.ndarray, units: float, prediction: bool
    ) -> Iterator[tuple[str, np.ndarray]]:
        """(reason, bool (H, W)) of pixels without a value. known: what is left, updated after each rule."""
        return finite_rule(raw)

    def check_truth(self, raw: Raw, path: Path, units_per_metre: float | None, advice: str) -> None:
        """ValueError for numbers that cannot be measured values of this kind."""

    def in_units(self, values: np.ndarray, units_per_metre: float) -> np.ndarray:
        """Measured values in this project's unit. ValueError where they cannot be such values."""
        return values

    def known_pixels(
        self,
        raw: np.ndarray,
        mask: np.ndarray | None = None,
        units_per_metre: float = 1.0,
        prediction: bool = False,
        about: Mapping[Any, object] = MappingProxyType({}),
    ) -> Known:
        """The pixels of one map that have a value, and why the others have none.

        The one place that decides, for ground truth, labels, predictions and masks; the README here has the rules
        as a table. They depend on the kind of map and on how its numbers are stored (8 or 16 bits, other integers,
        floats), never on the file format: a .png and a .npy of the same numbers have the same known pixels.

        raw: the numbers as the file stores them, (H, W) or (H, W, C). mask: (H, W) of any dtype, not zero = known.
        units_per_metre: of depth. prediction: every finite number of depth and colour is a value, since predicted
        depth has no unit and no zero point. about: the text in the file's header; an image that this project predicted
        has a value everywhere, and black is one of them. Raises MaskShapeError, and ValueError for normals of another
        shape.
        """
        shape = raw.shape[:2]
        known, unknown = np.ones(shape, bool), {}
        if mask is not None:
            if mask.shape != shape:
                raise MaskShapeError(f"mask of shape {mask.shape} does not fit a map of {shape}")
            known = mask.astype(bool)
            if outside := int(known.size - np.count_nonzero(known)):
                unknown[OUTSIDE] = outside
        if raw.dtype.kind == "u" and str(about.get("software", "")).startswith(PROGRAM):
            return Known(known, unknown)
        for reason, hit in self.unknown_rules(raw, known, units_per_metre, prediction):
            hit &= known
            if count := int(np.count_nonzero(hit)):
                unknown[reason] = unknown.get(reason, 0) + count
                known &= ~hit  # in place: the depth rules look at what is still known
        return Known(known, unknown)

    def read_truth(
        self, path: Path, mask: Path | None = None, units_per_metre: float | None = None, advice: str = UNIT_ADVICE
    ) -> Map:
        """One map of ground truth. Raises InputError naming the file that is wrong.

        Nothing is guessed: a file that could mean two things is an error. mask: the file of its mask. units_per_metre:
        of depth, whichever the format; None: floats are metres, and whole numbers an error that ends in `advice`. An
        unknown normal is the zero vector.
        """
        inside = None if mask is None else read_mask_named(mask)
        try:
            raw = read_raw(path)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        return self.truth_in(raw, path, inside, units_per_metre, advice, mask)

    def truth_in(
        self,
        raw: Raw,
        path: Path,
        inside: np.ndarray | None = None,
        units_per_metre: float | None = None,
        advice: str = UNIT_ADVICE,
        mask: Path | None = None,
    ) -> Map:
        """`read_truth` of numbers that were read. inside: the mask, bool (H, W). path, mask: named by InputError."""
        try:
            values = self.decode(raw)
            self.check_truth(raw, path, units_per_metre, advice)
            known = self.known_pixels(raw.array, inside, units_per_metre or 1.0, about=raw.about)
            values = self.in_units(values, units_per_metre or 1.0)
        except ValueError as error:
            raise InputError(f"{(mask or path) if isinstance(error, MaskShapeError) else path}: {error}") from None
        return self.as_map(raw, values, known)

    def read_prediction(self, path: Path) -> Map:
        """One predicted map; depth has any unit and either polarity. Raises InputError naming the file.

        An unknown normal is the zero vector. Files that this project wrote have a value everywhere: there black is a
        prediction.
        """
        try:
            return self.prediction_in(read_raw(path))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None

    def prediction_in(self, raw: Raw) -> Map:
        """`read_prediction` of numbers that were read. ValueError where they are not such a map."""
        raw = self.one_channel(raw)
        values = self.decode(raw)
        return self.as_map(raw, values, self.known_pixels(raw.array, prediction=True, about=raw.about))

    def one_channel(self, raw: Raw) -> Raw:
        """A prediction that repeats one channel three times, as that channel, where this kind has only one."""
        return raw

    def as_map(self, raw: Raw, values: np.ndarray, known: Known) -> Map:
        return Map(values, known.pixels, known.unknown, coded=raw.array.dtype.kind == "u")

    def read_diode(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """A .npy in a DIODE tree -> (values (H,W,C) in this project's conventions; where valid, bool (H,W))."""
        values = read_npy(path)
        return self.filled(values if values.ndim == 3 else values[..., None], self.known_pixels(values).pixels)

    def known_in_diode(self, path: Path) -> np.ndarray:
        """Where `read_diode` finds a value, bool (H,W)."""
        return self.read_diode(path)[1]

    def read_own(self, path: Path, mask: Path | None, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Ground truth of the user's own -> (values (H,W,C), 0 where not valid; where valid, bool (H,W)).

        frame: the axes of normals.
        """
        found = self.read_truth(path, mask)
        return self.filled(found.values if found.values.ndim == 3 else found.values[..., None], found.known)

    @staticmethod
    def filled(values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.where(valid[..., None], values, 0), valid

    def truth_warnings(self, medians: Sequence[float], units_per_metre: float | None) -> list[str]:
        """Warnings about a unit that is probably wrong. medians: `truth_median` of each image."""
        return []

    def truth_median(self, values: np.ndarray) -> float | None:
        """The median of an image's true values, where their size tells something about their unit."""
        return None

    def facing_away(self, values: np.ndarray) -> float | None:
        """Share of those true values of an image that face away from the camera, as no visible surface does."""
        return None

    def check_record(self, words: str, facts: Mapping[str, str], use: Any, where: Path | str) -> list[str]:
        """Compare a stated convention (words) with `utils.kinds.label_record.Use`; notes. Raises Contradiction."""
        return []

    # Display -------------------------------------------------------------------------------------------------------

    def image8(self, prediction: Tensor) -> np.ndarray:
        """A prediction -> the image that inference writes, uint8: (H,W,3), or (H,W) of a grey one."""
        pixels = to_uint8(self.panel(prediction))
        return pixels[..., 0] if self.intrinsic.grey else pixels

    def values(self, prediction: Tensor) -> np.ndarray:
        """A prediction -> float32 values: (H,W,3), or (H,W) of a grey one, about [0,1], not clamped."""
        values = prediction.float() / 2 + 0.5
        return (values.mean(0) if self.intrinsic.grey else values.permute(1, 2, 0).contiguous()).cpu().numpy()

    def panel(self, prediction: Tensor) -> Tensor:
        """How a panel shows a prediction: as it is, a grey one by its mean."""
        return grey(prediction) if self.intrinsic.grey else prediction

    def truth_panel(self, gt: Tensor, valid: Tensor) -> Tensor:
        """How a panel shows ground truth (C,H,W), valid (1,H,W): (3,H,W) in [-1,1], invalid pixels black."""
        return black(gt.expand(3, -1, -1)).where(~valid, 2 * gt.clamp(0, 1).float() - 1)

    def shown(self, values: np.ndarray, frame: str = "opengl") -> dict[str, np.ndarray]:
        """Values as people are used to seeing them -> title: uint8 image (H,W,3). Files keep the declared frame.

        frame: of the colours of normals: opengl, blue-violet where a surface faces the viewer, or opencv, the axes of
        the files.
        """
        return {self.intrinsic.name: to_byte(np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values)}

    def legend(self, colours: str, convention: str) -> str | None:
        """A line that explains the colours of `shown`; None where they need no explanation."""
        return None

    # Resizing, averaging, tiles ------------------------------------------------------------------------------------

    def resized(self, prediction: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
        """A prediction brought to another size by `resize`."""
        return resize(prediction)

    def mirrored_mean(self, plain: Tensor, mirrored: Tensor) -> Tensor:
        """The mean of predictions (B,3,H,W) and of those of the mirrored images, flipped back."""
        return (plain + mirrored) / 2

    def merge(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions (N,3,H,W) of one image -> (map (3,H,W), uncertainty (H,W)), float32 on the CPU.

        The median of each channel; uncertainty is the channels' mean median absolute deviation. Members that went
        astray do not move a median as long as they are fewer than half.
        """
        merged = median(members := members.float().cpu())
        uncertainty = median((members - merged).abs()).mean(0)
        return merged.expand(3, -1, -1).clone(), uncertainty

    def tile(self, prediction: Tensor, reference: Tensor | None) -> Tensor:
        """A window's map (3,h,w) in the form that is averaged. reference: (1,h,w), see `reference` above."""
        return prediction

    def untiled(self, total: Tensor) -> Tensor:
        """The weighted mean (3,H,W) of windows as a prediction."""
        return total

    # Files that inference writes -----------------------------------------------------------------------------------

    def convention(self, output: Any) -> tuple[str, str]:
        """(key, meaning) of the values that are written with `utils.inference.output.Output`."""
        return self.intrinsic.convention

    def turned(self, prediction: Tensor, output: Any) -> Tensor:
        """The prediction in the axes, and with the polarity, of the files."""
        return prediction

    def exr(self, values: np.ndarray, about: dict[str, str]) -> tuple[np.ndarray, str, dict[str, str]]:
        """(values, channels, header) of an EXR."""
        return values, "Y" if values.ndim == 2 else "RGB", about

    def shares(self, values: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
        """Values -> [0,1] for 16 bits, and which values 0 and 65535 stand for."""
        return values, {"value_at_0": "0", "value_at_65535": "1"}

    # Scores in validation ------------------------------------------------------------------------------------------

    def score(self, prediction: Tensor, gt: Tensor, valid: Tensor, protocol: str) -> dict[str, float] | None:
        """Metrics of a prediction against gt (C,H,W) and valid (1,H,W); None where nothing can be scored."""
        raise NotImplementedError

    def score_text(self, protocol: str) -> str:
        """One line on what `score` measures, for model cards."""
        raise NotImplementedError

    def label_truth(self, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """A label (3,R,R) in [-1,1], decoded to the unit of gt, and where it is valid."""
        return target / 2 + 0.5, valid

    # Evaluation ----------------------------------------------------------------------------------------------------

    def needs_mask(self, protocol: str) -> bool:
        return False

    def protocol_rule(self, protocol: str) -> str:
        """The protocol's addition to `known_rule`, in words that continue the sentence."""
        return ""

    def settings(self, rules: Rules) -> dict:
        """The settings of evaluate.py that mean something for this kind, as the result states them."""
        return {}

    def truth_values(self, values: np.ndarray, path: Path, rules: Rules) -> np.ndarray:
        """Ground truth as read -> in the axes or the colour space that is scored."""
        return values

    def prediction_values(self, values: np.ndarray, path: Path, rules: Rules) -> np.ndarray:
        """A prediction as read -> in the axes or the colour space that is scored."""
        return values

    def scored_pixels(self, gt: np.ndarray, known: np.ndarray, rules: Rules) -> tuple[tuple[slice, slice], np.ndarray]:
        """(window that is scored, pixels that count, bool (H, W)). ValueError where the protocol cannot be applied."""
        return np.s_[0 : known.shape[0], 0 : known.shape[1]], known

    def fitted(self, pred: np.ndarray, gt: np.ndarray, resized: bool) -> np.ndarray:
        """A prediction with the channels of the truth; resized: it will be. ValueError where it lacks some."""
        return pred

    def score_image(self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> Scored:
        """Metrics and errors of one image. NoValueError; ValueError where there is not enough truth to score."""
        require_values(~np.isfinite(pred[valid]), NOT_FINITE)
        metrics = self.metrics(pred, gt, valid, rules)
        errors = self.compare(pred, gt, valid, rules)[1][valid]
        bins = np.minimum(errors * 1000, RELATIVE_BINS - 1).astype(int)
        return Scored(metrics, np.bincount(bins, minlength=RELATIVE_BINS))

    def metrics(self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> dict[str, float]:
        """Metrics of one image."""
        raise NotImplementedError

    def compare(
        self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules
    ) -> tuple[np.ndarray, np.ndarray]:
        """(prediction as it is scored, error map (H, W)). Values outside `valid` mean nothing."""
        error = np.abs(pred - gt)
        return pred, error if error.ndim == 2 else error.mean(axis=2)

    def summed(self, values: np.ndarray) -> np.ndarray:
        """True values (N, C) in the form whose mean is the best constant."""
        return values

    def constant(self, mean: np.ndarray) -> np.ndarray:
        """The constant prediction of a mean of `summed` values. ValueError where it has none."""
        return mean

    def figures(self, pred: np.ndarray, gt: np.ndarray, valid: np.ndarray, rules: Rules) -> tuple[list, str]:
        """([prediction as scored, truth] as (H, W, 3) in [0, 1], how they are shown)."""
        maps = [m if m.ndim == 3 else np.repeat(m[..., None], 3, 2) for m in (pred, gt)]
        return maps, f"shown in {rules.gt_space} as scored, clipped to [0, 1]"

    # Convention check ----------------------------------------------------------------------------------------------

    def evidence(self, pred: np.ndarray, gt: np.ndarray, rules: Rules) -> tuple[Evidence | None, Evidence | None]:
        """(how well other conventions would fit the prediction, what the truth shows by itself); of (N, 1, C)."""
        return None, None

    def findings(self, evidence: Sequence[Evidence], rules: Rules) -> list[Finding]:
        """Conventions that fit the predictions of a set better than the one they are scored in."""
        return []

    def truth_findings(self, truth: Sequence[Evidence], rules: Rules) -> list[Finding]:
        """Findings that the ground truth shows by itself."""
        return []

    def flags_for(self, finding: Finding, rules: Rules) -> str:
        """The flags or the command that fix a finding of an evaluation."""
        return ""

    def placement_fit(
        self, space: str = "srgb", coding: str = "linear", domain: str = "depth", truth_space: str = "linear"
    ) -> Fit | None:
        """The error by which `utils.kinds.evidence` tells whether maps lie on their images; None: not checked.

        space, truth_space: of a colour's values and truth. coding, domain: of depth, see `depth_evidence`. Normals:
        values and truth in the same axes.
        """
        return None

    def value_findings(self, triples: Sequence[tuple]) -> list[Finding]:
        """Findings from predicted values, truth and known pixels of each image."""
        return []

    def label_evidence(self, label: np.ndarray, truth: np.ndarray | None, known: np.ndarray | None) -> Evidence:
        """label (H,W,3) in [-1,1], as a training reads it; truth (H,W,C): its gt, None where nothing is measured."""
        return Evidence({})

    def label_findings(self, evidence: Sequence[Evidence]) -> list[Finding]:
        return []

    def label_fix(self, finding: Finding) -> str:
        """How labels are put right."""
        return ""


@dataclass(frozen=True)
class Score:
    """The score of predictions in validation. protocol: a depth data set's rules. on_label: gt is not measured but is
    the decoded label, and every metric's name begins with label_.

    Called with the prediction (3,H,W), the data set's gt (C,H,W) and valid (1,H,W), it gives the metrics of that
    image, or None where no pixel is valid.
    """

    kind: MapKind
    protocol: str = "plain"
    on_label: bool = False

    def __call__(self, prediction: Tensor, gt: Tensor, valid: Tensor) -> dict[str, float] | None:
        scores = self.kind.score(prediction, gt, valid, self.protocol)
        if scores is None or not self.on_label:
            return scores
        return {f"label_{name}": value for name, value in scores.items()}

    @property
    def description(self) -> str:
        """One line on what it measures."""
        text = self.kind.score_text(self.protocol)
        return f"Against the label, which is no measurement: {text}" if self.on_label else text


def score_of(intrinsic: Intrinsic, protocol: str = "plain") -> Score:
    """The score of this intrinsic's predictions; `protocol` names a depth data set's rules (DEPTH_RULES)."""
    return Score(intrinsic.map_kind, protocol)


def against_label(score: Score) -> Score:
    """`score` where gt is not measured but is the decoded label."""
    return replace(score, on_label=True)


def label_as_truth(intrinsic: Intrinsic, target: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A label (3,R,R) in [-1,1], decoded to the unit of gt, and valid (1,R,R).

    known: bool (1,R,R), where the label has a value; None: everywhere.
    """
    import torch

    valid = torch.ones_like(target[:1], dtype=torch.bool) if known is None else known
    return intrinsic.map_kind.label_truth(target, valid)


def higher_is_better(metric: str) -> bool:
    """True if more of the metric of this name is better: shares of good pixels, PSNR, SSIM; all others are errors.

    A prefix `label_` (scored against a label, not against a measurement) changes nothing.
    """
    return metric.removeprefix("label_").startswith(HIGHER_IS_BETTER)


def finite_rule(raw: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if raw.dtype.kind == "f":
        yield NOT_FINITE, ~every_channel(np.isfinite(raw))


def every_channel(found: np.ndarray) -> np.ndarray:
    return found if found.ndim == 2 else np.logical_and.reduce(found, axis=2)


def shares(unknown: Mapping[str, int], pixels: int, what: str) -> str | None:
    """ "12.5 % of <what> are unknown: 8.0 % mid-grey, 4.5 % black", the most frequent first; None if none is."""
    if not unknown or not pixels:
        return None
    ranked = sorted(unknown.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{_percent(count, pixels)} {reason}" for reason, count in ranked)
    return f"{_percent(sum(unknown.values()), pixels)} of {what} are unknown: {parts}"


def _percent(count: int, pixels: int) -> str:
    share = 100 * count / pixels
    return f"{share:.1f} %" if share >= 0.1 else f"{share:.1g} %"


def require_values(bad: np.ndarray, what: str, codes: str = "") -> None:
    """NoValueError where any of the scored values is bad."""
    if bad.any():
        raise NoValueError(f"{what} on {np.count_nonzero(bad)} of {bad.size} scored values{codes}")


def valid_values(pred: np.ndarray, gt: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def median(members: Tensor) -> Tensor:
    """Over the first axis; of an even number the mean of the middle two (torch.median would take the lower)."""
    ordered, n = members.sort(0)[0], len(members)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
