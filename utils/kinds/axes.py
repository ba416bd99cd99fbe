"""Camera axes of normals: between the frames of frames.py, and which of them fits a set of maps.

The convention check of normals: see `utils.kinds.evidence` for the rule.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from utils.image_io.colour_space import to_linear, to_srgb
from utils.kinds.evidence import SPREAD, Evidence, Finding, best_finding, odd_finding, sample
from utils.kinds.frames import FRAMES

if TYPE_CHECKING:
    from utils.kinds.base import Rules

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
ODD_NORMALS = {
    "grey": "are grey: three equal channels are depth or shading, not normals",
    "shifted": "are in [0,1] and were never shifted back to [-1,1] (2 n - 1)",
    "255": "reach 255: they were never decoded from 8 bits (n = 2 v / 255 - 1)",
}


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) scaled to length 1, float64; NaN where the vector is zero or not finite."""
    vectors = np.asarray(vectors, dtype=np.float64)
    with np.errstate(all="ignore"):
        # Dividing by the largest component first keeps squares of very long or short vectors inside float64's range.
        vectors = vectors / np.abs(vectors).max(axis=-1, keepdims=True)
        return vectors / np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]


def convert_frame(normals: np.ndarray, frame: str) -> np.ndarray:
    """Normals (..., 3) of `frame` in opencv axes; `to_frame` is the inverse."""
    order, signs = _axes(frame)
    if (order, signs) == ([0, 1, 2], [1, 1, 1]):
        return normals
    return normals[..., order] * np.array(signs, dtype=normals.dtype)


def to_frame(normals: np.ndarray, frame: str) -> np.ndarray:
    """Normals (..., 3) in opencv axes, in the axes of `frame`."""
    order, signs = _axes(frame)
    found = np.empty_like(normals)
    found[..., order] = normals * np.array(signs, dtype=normals.dtype)
    return found


def _axes(frame: str) -> tuple[list[int], list[int]]:
    """For each axis of opencv: its index in `frame`, and its sign."""
    return [abs(axis) - 1 for axis in FRAMES[frame]], [1 if axis > 0 else -1 for axis in FRAMES[frame]]


def frame_in(words: str) -> str | None:
    """The frame that a convention names."""
    names = "|".join(sorted(map(re.escape, FRAMES), key=len, reverse=True))
    found = re.search(rf"\b({names})\b", words)
    return found[1] if found else None


def normals_evidence(values: np.ndarray, truth: np.ndarray | None = None, known: np.ndarray | None = None) -> Evidence:
    """values (H,W,3): normals as the file has them, in its own axes, any length, [-1,1] as decoded from 8 bits.
    truth (H,W,3): in opencv axes; known (H,W) bool. errors: ("decoded", index into ALL_AXES) -> degrees.
    """
    n, t = sample(values, truth, known)
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


def normals_findings(evidence: Sequence[Evidence], frame: str = "opencv") -> list[Finding]:
    """frame: the axes that the values are taken to have."""
    if odd := odd_finding(evidence, ODD_NORMALS):
        return [odd]
    base = taken_for(frame)
    found = best_finding(evidence, base, "degrees")
    if found is None:
        odd = odd_finding(evidence, {"length": "are far from unit length, all by the same factor"})
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


def taken_for(frame: str) -> tuple:
    """The candidate of normals that are what they are taken for, in the axes of `frame`."""
    return "plain", ALL_AXES.index(_axes_of(frame))


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


def flag_for(finding: Finding, rules: Rules) -> str:
    pred = frame_of(finding)
    gt = true_frame_of(finding, rules.pred_frame, rules.gt_frame)
    flags = [f"--pred_frame {pred}"] if pred else []
    flags += [f"--gt_frame {gt} if it is the truth that has other axes"] if gt else []
    if flags:
        return "pass " + ", or ".join(flags)
    if finding.key[0] == "plain":
        return "no --pred_frame fits: re-export them with x right, y down, z forward, in RGB order"
    return "re-export them as unit vectors in .npy, or as 255 (n / 2 + 0.5) in .png"


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


def _positive(n: np.ndarray) -> bool:
    """True if all of these vectors point into one octant, but for noise; a map of a scene never does, in any frame."""
    return bool((n >= -0.1).mean() > 0.95)


def _angles(n: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Mean angle in degrees of unit vectors (N,3) to the truth under each of ALL_AXES; without direction: 90."""
    products = (t[:, :, None] * n[:, None, :]).reshape(len(n), 9)
    angles = np.degrees(np.arccos(np.clip(_MIX @ products.T, -1, 1)))
    return np.nan_to_num(angles, nan=90.0).mean(axis=1)


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


def fit_normals(values: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Mean angle of vectors (N,3) to the truth's, and of the best constant's, in degrees; for `Fit`."""
    t = unit_vectors(truth)
    mean = np.nan_to_num(unit_vectors(t.mean(axis=0)))
    cosines = np.einsum("ij,ij->i", unit_vectors(values), t)
    return _mean_angle(cosines), _mean_angle(t @ mean)


def _mean_angle(cosines: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(np.nan_to_num(cosines), -1, 1))).mean())
