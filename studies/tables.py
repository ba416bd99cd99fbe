"""Bootstrap intervals over seeds and images, Markdown tables and plots, shared by the studies."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.intrinsics import INTRINSICS

DRAWS = 4000


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def headline(task: str) -> str:
    """Name of the task's error."""
    return next(iter(INTRINSICS[task].scores.values()))


def matrix(results: list[dict]) -> np.ndarray:
    """Errors of one setting: (seeds, images), NaN where an image cannot be scored."""
    return np.array([[np.nan if value is None else value for value in one["errors"]] for one in results], float)


def resample(errors: np.ndarray, draws: int = DRAWS) -> np.ndarray:
    """Bootstrap means (draws,) of errors (seeds, images): seeds and images are both resampled with replacement.

    The same draws for every setting with as many seeds and images, so that differences are paired.
    """
    rng = np.random.default_rng(0)
    seeds, images = errors.shape
    rows = rng.integers(seeds, size=(draws, seeds))
    columns = rng.integers(images, size=(draws, images))
    return np.nanmean(errors[rows[:, :, None], columns[:, None, :]], axis=(1, 2))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95 %."""
    return tuple(np.percentile(values, [2.5, 97.5]))


def ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """Mean error over mean error, each (seeds, images), the draws paired; a reference may have one seed alone."""
    above, below = np.broadcast_arrays(above, below)
    low, high = interval(resample(above) / resample(below))
    return Estimate(float(np.nanmean(above) / np.nanmean(below)), low, high)


def spearman(a, b) -> float:
    """Rank correlation of two sequences without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def groups(results: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    """Results by the values of these settings, in the order asked; each group holds one result per seed."""
    found: dict[tuple, list[dict]] = {}
    for one in results:
        found.setdefault(tuple(one["setting"][key] for key in keys), []).append(one)
    return found


def format_results(results: list[dict], digits: int = 3) -> str:
    """Mean with its interval."""
    return with_interval(matrix(results), digits)


def with_interval(errors: np.ndarray, digits: int = 3) -> str:
    """Mean with its interval, of errors (seeds, images)."""
    low, high = interval(resample(errors))
    return f"{np.nanmean(errors):.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def new_axes():
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(5.8, 3.6), layout="constrained")[1]


def finish(axes, path: Path, title: str) -> str:
    """Save the plot under this title; returns the image's link, with the title as its text."""
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.savefig(path, dpi=110)
    return f"![{title}]({path.name})"
