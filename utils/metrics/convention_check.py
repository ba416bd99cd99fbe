"""Does a map use the convention that it is taken for? Compares maps with truth under every other usual convention.

A map in another convention is often a good map: its error falls far once the right transformation undoes the wrong
one, while noise, blur and bad predictions gain little from any of them. So each image gives an `Evidence`, the mean
error under every candidate, and `findings` weighs the evidence of a set. What values show without any truth (grey
normals, colours in depth) is part of the evidence.

A finding needs all of: the mean error under the best candidate is less than 0.7 times the present one (half, of fewer
than four images); it is below half the error of the best constant of each image (a constant map, or noise, can be
turned to fit the mean of the truth, but not its structure); at least three quarters of the images agree. It is sure
where the error falls to less than half, nine tenths of the images agree, and there are at least four of them.
docs/evaluation.md, "Convention check", has the rates of false alarms and detection that these thresholds have.

Pure functions on arrays; nothing here draws random numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from utils.intrinsics import Intrinsic
from utils.maps.conventions import to_linear, to_srgb, unit_vectors
from utils.maps.depth_coding import decode_far
from utils.maps.frames import FRAMES
from utils.metrics.colour import align_scale
from utils.metrics.depth import align_scale_shift

PIXELS = 1024  # of each image, evenly spaced among the known ones
LEFT, SURE_LEFT = 0.7, 0.5  # share of the error that may be left
OF_CONSTANT = 0.5  # share of the error of each image's best constant
AGREE, SURE_AGREE, SURE_IMAGES = 0.75, 0.9, 4
CLEAR = 0.5  # rank correlation from which brightness says where near is
SPREAD = 0.08  # largest minus smallest channel, of [0,1]: 20 grey levels, more than JPEG leaves on grey
AXES = "xyz"

Axes = tuple[tuple[int, ...], tuple[int, ...]]  # order, signs: new = old[order] * signs


def _all_axes() -> list[Axes]:
    """The 48 ways to permute and flip axes; frames with a name first, so that they win ties."""
    named = [(tuple(abs(axis) - 1 for axis in each), tuple(np.sign(each).tolist())) for each in FRAMES.values()]
    every = [(p, s) for p in itertools.permutations(range(3)) for s in itertools.product((1, -1), repeat=3)]
    return list(dict.fromkeys([*named, *every]))


ALL_AXES = _all_axes()
_MIX = np.zeros((len(ALL_AXES), 9))  # truth_i * values_j, summed for each of ALL_AXES
for _row, (_order, _signs) in enumerate(ALL_AXES):
    for _i in range(3):
        _MIX[_row, 3 * _i + _order[_i]] = _signs[_i]

DECODED: dict[
    str, Callable
] = {  # what may have been done to encoded normals v = n / 2 + 0.5, and what undoes it; n in, n out
    "plain": lambda n: n,
    "shifted": lambda n: 2 * n - 1,
    "srgb": lambda n: 2 * to_linear(n / 2 + 0.5) - 1,
    "linear": lambda n: 2 * to_srgb(n / 2 + 0.5) - 1,
}
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


class Evidence(NamedTuple):
    """Evidence of one image. errors: candidate -> mean error, empty without truth to compare with.

    constant: error of the image's best constant. odd: names of what its values show without any truth.
    nearness: rank correlation of a depth map's values with nearness, or None.
    """

    errors: dict[tuple, float]
    constant: float = np.inf
    odd: tuple[str, ...] = ()
    nearness: float | None = None


@dataclass(frozen=True)
class Finding:
    """A convention that fits a set of maps better than the one they are taken for.

    key: the best candidate, or (name,) of an oddity. change: what would put it right, in words. before, after: mean
    errors in `unit`, where there is truth. agree, images: how many of them show it. sure: see the module's docstring.
    """

    key: tuple
    change: str
    agree: int
    images: int
    sure: bool
    before: float | None = None
    after: float | None = None
    unit: str = ""

    def text(self, subject: str, fix: str) -> str:
        """One line. subject: such as "the predictions"."""
        count = f"{self.agree} of {self.images} images agree: {'sure' if self.sure else 'likely'}"
        if self.before is None or self.after is None:
            return f"{subject} {self.change} ({count}); {fix}"
        digits = 1 if self.unit == "degrees" else 3
        fall = f"from {self.before:.{digits}f} to {self.after:.{digits}f} {self.unit}"
        return f"{self.change} of {subject} would cut the mean error {fall} ({count}); {fix}"


# Evidence of one image


def normals_evidence(values: np.ndarray, truth: np.ndarray | None = None, known: np.ndarray | None = None) -> Evidence:
    """values (H,W,3): normals as the file has them, in its own axes, any length, [-1,1] as decoded from 8 bits.
    truth (H,W,3): in opencv axes; known (H,W) bool. errors: ("decoded", index into ALL_AXES) -> degrees.
    """
    n, t = _sample(values, truth, known)
    odd = _odd_normals(n)
    if t is None or not len(t):
        return Evidence({}, odd=odd)
    t = unit_vectors(t)
    positive = _positive(n)
    errors: dict[tuple, float] = {}
    for name, decode in DECODED.items():
        if name != "shifted" or positive:
            angles = _angles(unit_vectors(decode(n)), t)
            errors |= {(name, index): float(angle) for index, angle in enumerate(angles)}
    mean = unit_vectors(t.mean(axis=0))
    constant = np.degrees(np.arccos(np.clip(t @ np.nan_to_num(mean), -1, 1))).mean()
    return Evidence(errors, float(constant), odd)


def depth_evidence(
    values: np.ndarray,
    truth: np.ndarray | None = None,
    known: np.ndarray | None = None,
    codings: Sequence[str] = ("linear",),
) -> Evidence:
    """values (H,W) or (H,W,3): a depth map in any unit. truth (H,W): metres, > 0 where known.

    codings: which of labels to try (`utils.maps.depth_coding`): values are then grey in [0,1], near = 1.
    errors: (coding, domain) -> mean relative error after scale and shift in that domain, on the middle nine tenths of
    the depths, where no label is clipped.
    """
    p, g = _sample(
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


def colour_evidence(
    values: np.ndarray, truth: np.ndarray | None = None, known: np.ndarray | None = None, space: str = "srgb"
) -> Evidence:
    """values (H,W,3) or (H,W): albedo or shading in `space`; truth: the same shape, linear.

    errors: (curve, order) -> RMSE in linear light after one scale, relative to the truth's root mean square. curve:
    "as is", "encode" (values were decoded once too often) or "decode"; order: "rgb" or "bgr".
    """
    p, g = _sample(np.atleast_3d(values), None if truth is None else np.atleast_3d(truth), known)
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


# Findings: the evidence of a set of images


def normals_findings(evidence: Sequence[Evidence], frame: str = "opencv") -> list[Finding]:
    """frame: the axes that the values are taken to have."""
    if odd := _odd_finding(evidence, ODD_NORMALS):
        return [odd]
    base = taken_for(frame)
    found = best_finding(evidence, base, "degrees")
    if found is None:
        odd = _odd_finding(evidence, {"length": "are far from unit length, all by the same factor"})
        return [odd] if odd else []
    decoded, index = found.key
    words = {
        "plain": "",
        "shifted": "shifting the [0,1] values back to [-1,1] (2 n - 1)",
        "srgb": "undoing the sRGB curve on the encoded channels",
        "linear": "redoing the sRGB curve on the encoded channels (they were linearised)",
    }[decoded]
    axes = _words(ALL_AXES[base[1]], ALL_AXES[index])
    return [replace(found, change=" and ".join(part for part in (words, axes) if part))]


def depth_findings(
    evidence: Sequence[Evidence], coding: str = "linear", domain: str = "depth", polarity: bool = True
) -> list[Finding]:
    """coding, domain: what the values are taken to have, and to be affine in. polarity: whether near must be large."""
    if odd := _odd_finding(evidence, {"colours": "have colours: they are depth through a colour map"}):
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


def colour_findings(evidence: Sequence[Evidence]) -> list[Finding]:
    if odd := _odd_finding(evidence, ODD_COLOURS):
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


def taken_for(frame: str) -> tuple:
    """The candidate of normals that are what they are taken for, in the axes of `frame`."""
    return "plain", ALL_AXES.index(_axes_of(frame))


def evidence_of_label(
    intrinsic: Intrinsic, label: np.ndarray, truth: np.ndarray | None, known: np.ndarray | None
) -> Evidence:
    """label (H,W,3) in [-1,1], as a training reads it; truth (H,W,C): its gt, None where nothing is measured."""
    if intrinsic.kind == "normals":
        return normals_evidence(label, truth, known)
    if intrinsic.kind == "depth":
        codings = ("linear", "log", "sqrt")
        return depth_evidence(label / 2 + 0.5, None if truth is None else truth[..., 0], known, codings)
    return colour_evidence(label / 2 + 0.5, truth, known, intrinsic.coding)


def findings_of_labels(intrinsic: Intrinsic, evidence: Sequence[Evidence]) -> list[Finding]:
    """The findings of labels of one intrinsic, in its own convention."""
    if intrinsic.kind == "normals":
        return normals_findings(evidence)
    if intrinsic.kind == "depth":
        return depth_findings(evidence, intrinsic.depth_coding)
    return colour_findings(evidence)


def frame_of(finding: Finding) -> str | None:
    """The named frame that the values of a normals finding have, if they are otherwise plain."""
    if len(finding.key) != 2 or finding.key[0] != "plain":
        return None
    return next((name for name in FRAMES if _axes_of(name) == ALL_AXES[finding.key[1]]), None)


def true_frame_of(finding: Finding, pred_frame: str, gt_frame: str) -> str | None:
    """The named frame that the truth would have if not it, but the values' axes, were right."""
    if len(finding.key) != 2 or finding.key[0] != "plain":
        return None
    # pred_frame . values = G . raw truth, and best . values = gt_frame . raw truth
    best, pred, gt = (_matrix(axes) for axes in (ALL_AXES[finding.key[1]], _axes_of(pred_frame), _axes_of(gt_frame)))
    wanted = pred @ best.T @ gt
    return next((name for name in FRAMES if (_matrix(_axes_of(name)) == wanted).all()), None)


# Parts


ODD_NORMALS = {
    "grey": "are grey: three equal channels are depth or shading, not normals",
    "shifted": "are in [0,1] and were never shifted back to [-1,1] (2 n - 1)",
    "255": "reach 255: they were never decoded from 8 bits (n = 2 v / 255 - 1)",
}

ODD_COLOURS = {
    "255": "reach 255: they were not divided by it",
    "normals": "are normals: vectors of unit length, encoded as (n + 1) / 2",
}


def _sample(
    values: np.ndarray, truth: np.ndarray | None, known: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Up to PIXELS known pixels of both, float64 (N,C)."""
    if known is None or (truth is None and not known.any()):
        known = np.ones(values.shape[:2], bool)
    places = np.flatnonzero(known)
    places = places[:: max(1, -(-len(places) // PIXELS))]
    flat = values.reshape(-1, values.shape[-1])[places].astype(np.float64)
    usable = np.isfinite(flat).all(axis=1)
    if truth is None:
        return flat[usable], None
    return flat[usable], truth.reshape(-1, truth.shape[-1])[places][usable].astype(np.float64)


def _odd_normals(n: np.ndarray) -> tuple[str, ...]:
    """Names of the oddities that normals (N,3) show without any truth."""
    if not len(n):
        return ()
    coded = n / 2 + 0.5
    if (np.ptp(coded, axis=1) < SPREAD).mean() > 0.9 and coded.mean(axis=1).std() > 0.01:
        return ("grey",)
    if (n >= 0).all() and np.percentile(n, 99) > 16:
        return ("255",)
    length = np.linalg.norm(n, axis=1)
    off, back = np.abs(length - 1), np.abs(np.linalg.norm(2 * n - 1, axis=1) - 1)
    if _positive(n) and back.mean() < min(0.2, off.mean() / 2):
        return ("shifted",)
    # Means of normals (blur, an uncertain network) are short, here more and there less. A wrong scale is the same
    # everywhere, whatever the direction.
    scaled = length.std() < 0.15 * length.mean() and abs(length.mean() - 1) > 0.3
    turning = np.linalg.norm((n / np.maximum(length, 1e-12)[:, None]).mean(axis=0)) < 0.97
    return ("length",) if scaled and turning else ()


def _are_normals(v: np.ndarray) -> bool:
    """Whether colours (N,3) in [0,1] are encoded unit vectors of several directions."""
    if v.shape[1] != 3 or not len(v) or (np.ptp(v, axis=1) > SPREAD).mean() < 0.25:
        return False
    n = 2 * v - 1
    length = np.linalg.norm(n, axis=1)
    directions = n / np.maximum(length, 1e-12)[:, None]
    return bool((np.abs(length - 1) < 0.08).mean() > 0.75 and np.linalg.norm(directions.mean(axis=0)) < 0.97)


def _positive(n: np.ndarray) -> bool:
    """Whether all of these vectors point into one octant, but for noise: a map of a scene never does, in any frame."""
    return bool((n >= -0.1).mean() > 0.95)


def _angles(n: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Mean angle in degrees of unit vectors (N,3) to the truth under each of ALL_AXES; without direction: 90."""
    products = (t[:, :, None] * n[:, None, :]).reshape(len(n), 9)
    angles = np.degrees(np.arccos(np.clip(_MIX @ products.T, -1, 1)))
    return np.nan_to_num(angles, nan=90.0).mean(axis=1)


def best_finding(evidence: Sequence[Evidence], base: tuple, unit: str) -> Finding | None:
    """The candidate that the images together prefer to `base`, by the rule of the module's docstring."""
    seen = [one for one in evidence if one.errors]
    if not seen:
        return None
    keys = [key for key in seen[0].errors if all(key in one.errors for one in seen)]
    table = np.array([[one.errors[key] for key in keys] for one in seen])
    means = table.mean(axis=0)
    margin = 1.05 * means.min() + 1e-9  # among equals the first, which has a name
    best = next(i for i, mean in enumerate(means) if mean <= margin)
    before, after = table[:, keys.index(base)], table[:, best]
    constant = float(np.mean([one.constant for one in seen]))
    left = after.mean() / before.mean() if before.mean() > 0 else 1.0
    limit = LEFT if len(seen) >= SURE_IMAGES else SURE_LEFT
    if not (left < limit and after.mean() < OF_CONSTANT * constant):
        return None
    agree = int(np.count_nonzero(after < 0.8 * before))
    if agree < AGREE * len(seen):
        return None
    sure = len(seen) >= SURE_IMAGES and agree >= SURE_AGREE * len(seen) and left < SURE_LEFT
    return Finding(keys[best], "", agree, len(seen), sure, float(before.mean()), float(after.mean()), unit)


def _odd_finding(evidence: Sequence[Evidence], words: dict[str, str]) -> Finding | None:
    """The first oddity that most images show without any truth."""
    for name, change in words.items():
        agree = sum(name in one.odd for one in evidence)
        if evidence and agree >= AGREE * len(evidence):
            sure = name != "length" and agree >= SURE_AGREE * len(evidence)
            return Finding((name,), change, agree, len(evidence), sure)
    return None


def _axes_of(frame: str) -> Axes:
    return ALL_AXES[list(dict.fromkeys(FRAMES.values())).index(FRAMES[frame])]


def _matrix(axes: Axes) -> np.ndarray:
    order, signs = axes
    return np.eye(3, dtype=int)[list(order)] * np.array(signs)[:, None]


def _words(taken: Axes, best: Axes) -> str:
    """How values read with `taken` must change to be as if read with `best`: swaps, then flips."""
    change = _matrix(best) @ _matrix(taken).T
    order, signs = np.abs(change).argmax(axis=1), change.sum(axis=1)
    moved = [axis for axis in range(3) if order[axis] != axis]
    parts = []
    if len(moved) == 2:
        bgr = " (red and blue: BGR channel order)" if moved == [0, 2] else ""
        parts.append(f"swapping the axes {AXES[moved[0]]} and {AXES[moved[1]]}{bgr}")
    elif moved:
        parts.append(f"taking the axes in the order {', '.join(AXES[i] for i in order)}")
    if flips := [AXES[axis] for axis in range(3) if signs[axis] < 0]:
        parts.append("flipping " + " and ".join(flips))
    return " and ".join(parts)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of (N,), equal values sharing their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _range(values: np.ndarray) -> float:
    """1 for values in [0,1], 255 for those of 8 bits."""
    return 255.0 if values.size and values.max() > 2 else 1.0
