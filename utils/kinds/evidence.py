"""Does a map use the convention that it is taken for? Evidence of images, and the rule that weighs it.

A map in another convention is often a good map: its error falls far once the right transformation undoes the wrong
one, while noise, blur and bad predictions gain little from any of them. So each image gives an `Evidence`, the mean
error under every usual convention of its kind, and the kind's findings weigh the evidence of a set. What values show
without any truth (grey normals, colours in depth) is part of the evidence.

A finding needs all of: the mean error under the best candidate is less than 0.7 times the present one (half, of fewer
than four images); it is below half the error of the best constant of each image (a constant map, or noise, can be
turned to fit the mean of the truth, but not its structure); at least three quarters of the images agree. It is sure
where the error falls to less than half, nine tenths of the images agree, and there are at least four of them.
docs/evaluation.md, "Convention check", has the rates of false alarms and detection that these thresholds have.

Pure functions on arrays; nothing here draws random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PIXELS = 1024  # of each image, evenly spaced among the known ones
LEFT, SURE_LEFT = 0.7, 0.5  # share of the error that may be left
OF_CONSTANT = 0.5  # share of the error of each image's best constant
AGREE, SURE_AGREE, SURE_IMAGES = 0.75, 0.9, 4
SPREAD = 0.08  # largest minus smallest channel, of [0,1]: 20 grey levels, more than JPEG leaves on grey


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
