"""Does a map use the convention that it is taken for? Evidence of images, and the rule that weighs it.

A map in another convention is often a good map: its error falls far once the right transformation undoes the wrong
one, while noise, blur and bad predictions gain little from any of them. So each image gives an `Evidence`, the mean
error under every usual convention of its kind, and the kind's findings weigh the evidence of a set. What values show
without any truth (grey normals, colours in depth) is part of the evidence.

A finding needs all of: the mean error under the best candidate is less than 0.7 times the present one (half, of fewer
than four images); it is below half the error of the best constant of each image (a constant map, or noise, can be
turned to fit the mean of the truth, but not its structure); at least three quarters of the images agree. It is sure
where the error falls to less than half, nine tenths of the images agree, and there are at least four of them.
studies/results/conventions.md has the rates of false alarms and detection that these thresholds have.

Names pair maps with their truth, but a name does not show how a map lies on the image: a model may have seen the photo
without its EXIF orientation, or flipped, and a list that was sorted differently gives each map another one's name. So
each image also gives a `Placed`, and the same rule weighs those: `placement_findings`.

Pure functions on arrays; nothing here draws random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from utils.intrinsics import Intrinsic

PIXELS = 1024  # of each image, evenly spaced among the known ones
LEFT, SURE_LEFT = 0.7, 0.5  # share of the error that may be left
OF_CONSTANT = 0.5  # share of the error of each image's best constant
AGREE, SURE_AGREE, SURE_IMAGES = 0.75, 0.9, 4
SPREAD = 0.08  # largest minus smallest channel, of [0,1]: 20 grey levels, more than JPEG leaves on grey


WAYS = {  # what puts a map right -> (rows reversed, columns reversed, rows and columns exchanged)
    "mirroring left to right": (False, True, False),
    "mirroring top to bottom": (True, False, False),
    "turning by 180 degrees": (True, True, False),
    "turning by 90 degrees counterclockwise": (False, True, True),
    "turning by 90 degrees clockwise": (True, False, True),
    "transposing": (False, False, True),
    "transposing along the other diagonal": (True, True, True),
}
VECTORS = " (vectors too)"
AS_IS = ("as is",)
GRID = 24  # positions a side at which the maps of different images are compared
IMAGES = 24  # compared with one another, in pairs of neighbours
OTHERS = 0.4  # share of images that fit another one's truth; of right maps none does, and the other may not be there
RELATED = 8  # images from which maps that fit no truth at all are named
DIFFERENT = 0.72  # share of the maps' errors that the truths of two images must at least differ by


class Evidence(NamedTuple):
    """Evidence of one image. errors: candidate -> mean error, empty without truth to compare with.

    constant: error of the image's best constant. odd: names of what its values show without any truth.
    nearness: rank correlation of a depth map's values with nearness, or None.
    """

    errors: dict[tuple, float]
    constant: float = np.inf
    odd: tuple[str, ...] = ()
    nearness: float | None = None


class Fit(NamedTuple):
    """The error of a kind's values. error: (N,C) values and truth -> (mean error, error of the best constant).

    vectors: the values are vectors, which turn with the image.
    """

    error: Callable[[np.ndarray, np.ndarray], tuple[float, float]]
    unit: str = "(relative)"
    vectors: bool = False


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


def sample(
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


def odd_finding(evidence: Sequence[Evidence], words: dict[str, str]) -> Finding | None:
    """The first oddity that most images show without any truth."""
    for name, change in words.items():
        agree = sum(name in one.odd for one in evidence)
        if evidence and agree >= AGREE * len(evidence):
            sure = name != "length" and agree >= SURE_AGREE * len(evidence)
            return Finding((name,), change, agree, len(evidence), sure)
    return None


class Placed(NamedTuple):
    """How one image's map fits its truth under each way of lying on it.

    errors: ("as is",) or ("placed", words) -> mean error; empty where too little is known. constant: error of the best
    constant. values, truth (GRID, GRID, C), known (GRID, GRID): both at the same relative positions in every image.
    """

    errors: dict[tuple, float]
    constant: float
    values: np.ndarray
    truth: np.ndarray
    known: np.ndarray


def placed_of_label(
    intrinsic: Intrinsic, label: np.ndarray, truth: np.ndarray | None, known: np.ndarray | None
) -> Placed | None:
    """label (H,W,3) in [-1,1], as a training reads it; truth (H,W,C): its gt; None where nothing is measured."""
    fit = label_fit(intrinsic)
    if truth is None or known is None or fit is None:
        return None
    return placed(fit, label if fit.vectors else label / 2 + 0.5, truth, known)


def label_fit(intrinsic: Intrinsic) -> Fit | None:
    """The error of an intrinsic's labels; None for a kind that is not checked."""
    return intrinsic.map_kind.placement_fit(intrinsic.coding, intrinsic.depth_coding)


def placed(fit: Fit, values: np.ndarray, truth: np.ndarray, known: np.ndarray) -> Placed:
    """values (H,W,C), truth (H,W,C), known (H,W) bool; see `MapKind.placement_fit`."""
    height, width = known.shape
    places = np.flatnonzero(known)
    places = places[:: max(1, -(-len(places) // PIXELS))]
    rows, columns = np.divmod(places, width)
    target = truth[rows, columns].astype(np.float64)
    errors: dict[tuple, float] = {}
    error, constant = _fitted(fit, values[rows, columns], target)
    if np.isfinite(error):
        errors[AS_IS] = error
        for words, (flip_rows, flip_columns, exchange) in WAYS.items():
            if exchange and height != width:
                continue
            a, b = (columns, rows) if exchange else (rows, columns)
            moved = values[height - 1 - a if flip_rows else a, width - 1 - b if flip_columns else b]
            errors["placed", words] = _fitted(fit, moved, target)[0]
            if fit.vectors:
                turned = moved * (-1 if flip_columns else 1, -1 if flip_rows else 1, 1)
                turned = turned[:, [1, 0, 2]] if exchange else turned
                errors["placed", words + VECTORS] = _fitted(fit, turned, target)[0]
    grid = np.ix_(*(((np.arange(GRID) + 0.5) / GRID * side).astype(int) for side in (height, width)))
    return Placed(errors, constant, values[grid].astype(np.float32), truth[grid].astype(np.float32), known[grid])


def placement_findings(seen: Sequence[Placed | None], fit: Fit | None, others: Sequence[Finding]) -> list[Finding]:
    """`others`, what is wrong with the maps' conventions; or, where it explains them better, how they lie.

    Its key is ("placed", words) or ("paired",).
    """
    usable = [one for one in seen if one is not None and one.errors]
    if fit is None or not usable or any(len(one.key) == 1 and one.key != ("inverted",) for one in others):
        return list(others)
    found = best_finding([Evidence(one.errors, one.constant) for one in usable], AS_IS, fit.unit)
    if found is not None and found.key != AS_IS:
        found = replace(found, change=found.key[1])
    pairs = _paired(usable, fit)
    if found is None or (pairs is not None and pairs.after < found.after):  # type: ignore[operator]
        found = pairs
    if found is None or any(one.after is not None and one.after <= 1.3 * found.after for one in others):  # type: ignore[operator]
        return list(others)
    return [found]


def in_pairs(length: int, count: int) -> list[int]:
    """Up to `count` numbers below `length`: evenly spaced ones and the next of each, which may have its map."""
    if length <= count:
        return list(range(length))
    starts = np.linspace(0, length - 2, count // 2).astype(int)
    return np.unique([starts, starts + 1]).tolist()


def unrelated(seen: Sequence[Placed | None], intrinsic: Intrinsic) -> list[Finding]:
    """[] or the finding that maps fit their own truth no better than that of other images, whatever they are.

    It needs images whose truth differs, by more than the maps' own errors: noisy maps of one wall or floor after
    another fit all of them.
    """
    usable, fit = _some([one for one in seen if one is not None and one.errors]), label_fit(intrinsic)
    constant = np.mean([one.constant for one in usable]) if usable else 0.0
    if fit is None or len(usable) < RELATED or constant < intrinsic.map_kind.same_below:
        return []
    table = _others(_table(usable, fit))
    own = np.array([one.errors[AS_IS] for one in usable])
    if own.mean() < max(0.5 * constant, 0.9 * np.nanmean(table)):
        return []
    exact = intrinsic.map_kind.placement_fit("linear")
    assert exact is not None
    truths = _others(_table([one._replace(values=one.truth) for one in usable], exact))
    worse = int(np.count_nonzero(own >= np.nanmedian(table, axis=1)))
    if np.nanmean(truths) < DIFFERENT * min(own.mean(), constant) or worse < 0.25 * len(usable):
        return []
    change = "fit the truth of other images as well as their own"
    return [Finding(("unrelated",), change, worse, len(usable), False)]


def _paired(usable: Sequence[Placed], fit: Fit) -> Finding | None:
    """The finding that maps fit the truth of other images of the set, and not their own."""
    usable = _some(usable)
    if len(usable) < 2:
        return None
    table = _table(usable, fit)
    constants = np.array([one.constant for one in usable])
    own, best = table.diagonal(), table.argmin(axis=1)
    after = table.min(axis=1)
    hits = (after < 0.5 * own) & (after < OF_CONSTANT * constants[best])
    agree = int(hits.sum())
    if agree < OTHERS * len(usable):
        return None
    sure = len(usable) >= SURE_IMAGES and agree >= 3
    before, then = float(own.mean()), float(np.where(hits, after, own).mean())
    return Finding(("paired",), "exchanging the images", agree, len(usable), sure, before, then, fit.unit)


def _some(usable: Sequence[Placed]) -> list[Placed]:
    return [usable[place] for place in in_pairs(len(usable), IMAGES)]


def _table(usable: Sequence[Placed], fit: Fit) -> np.ndarray:
    """(map, truth) -> error of that map with the truth of that image; inf where nothing can be compared."""
    table = np.empty((len(usable), len(usable)))
    for j, other in enumerate(usable):
        target = other.truth[other.known].astype(np.float64)
        for i, one in enumerate(usable):
            table[i, j] = _fitted(fit, one.values[other.known], target)[0]
    return table


def _others(table: np.ndarray) -> np.ndarray:
    """The errors with other images' truth alone; NaN elsewhere. At least one of each row is there: see `RELATED`."""
    table[~np.isfinite(table)] = np.nan
    np.fill_diagonal(table, np.nan)
    return table


def _fitted(fit: Fit, values: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """`fit` on the values that are finite; inf where fewer than 16 are left, or they show another fault."""
    usable = np.isfinite(values).all(axis=1)
    if np.count_nonzero(usable) < 16:
        return np.inf, np.inf
    error, constant = fit.error(values[usable].astype(np.float64), truth[usable])
    return (error if np.isfinite(error) else np.inf), constant
