"""The pixel errors of a whole result as SVG: a histogram and a cumulative curve, with the baseline's beside."""

import numpy as np

from utils.evaluation.report.text import BASELINE
from utils.kinds.base import ErrorAxis

LEFT, TOP, WIDTH, HEIGHT = 52, 30, 430, 210


def charts(axis: ErrorAxis, errors: dict[str, np.ndarray]) -> str:
    """Histogram and cumulative curve of the pixel errors, prediction solid and baseline dashed."""
    shares = {}
    for name, counts in errors.items():
        cut = counts[:-1].astype(float)
        cut[-1] += counts[-1] if axis.unit else 0  # exactly 180 degrees belongs to the last full bin
        shares[name] = 100 * cut.reshape(-1, axis.bar).sum(axis=1) / counts.sum()
    reach = [int(np.searchsorted(np.cumsum(share), 99.0)) + 1 for share in shares.values()]
    bars = min(len(shares["prediction"]), 10 * -(-max(*reach, 10) // 10))
    end = bars * axis.bar / axis.per_unit
    top = max(share[:bars].max() for share in shares.values()) * 1.08
    step = end / bars
    elements = [
        _bar(i * step, (i + 1) * step, share, end, top) for i, share in enumerate(shares["prediction"][:bars]) if share
    ]
    if "baseline" in shares:
        outline = [((i + 0.5) * step, share) for i, share in enumerate(shares["baseline"][:bars])]
        elements.append(_line(outline, end, top, "baseline"))
    width = f"{step:g}{axis.unit}"
    histogram = _frame(elements, axis, end, top, f"% of pixels, per {width}", "Histogram", shares)
    curves = [
        _line([(0, 0), *(((i + 1) * step, y) for i, y in enumerate(np.cumsum(share)[:bars]))], end, 100, name)
        for name, share in shares.items()
    ]
    cumulative = np.concatenate([[0], np.cumsum(shares["prediction"])])
    for mark in axis.marks:
        if mark < end:
            y = np.interp(mark, np.arange(len(cumulative)) * step, cumulative)
            x_pixel, y_pixel = _at(mark, y, end, 100)
            label = f"<title>{y:.1f} % below {mark:g}{axis.unit}</title>"
            curves.append(f'<circle cx="{x_pixel:.1f}" cy="{y_pixel:.1f}" r="3" class="mark">{label}</circle>')
    return histogram + _frame(curves, axis, end, 100, "% of pixels below", "Cumulative", shares)


def _at(x: float, y: float, end: float, top: float) -> tuple[float, float]:
    return LEFT + WIDTH * x / end, TOP + HEIGHT * (1 - y / top)


def _bar(start: float, stop: float, share: float, end: float, top: float) -> str:
    (x, y), (right, floor) = _at(start, share, end, top), _at(stop, 0, end, top)
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(right - x - 0.6, 0.4):.2f}" height="{floor - y:.2f}" class="bar"/>'
    )


def _line(points: list[tuple[float, float]], end: float, top: float, style: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_at(*point, end, top) for point in points))
    return f'<polyline points="{path}" class="{style}"/>'


def _frame(elements: list[str], axis: ErrorAxis, end: float, top: float, y_label: str, title: str, names: dict) -> str:
    """Axes, ticks and labels around the elements, as one svg."""
    lines = []
    for x in _ticks(end):
        at, floor = _at(x, 0, end, top)
        lines.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{floor}" class="grid"/>')
        lines.append(f'<text x="{at:.1f}" y="{floor + 16}" text-anchor="middle">{x:g}{axis.unit}</text>')
    for y in _ticks(top):
        left, at = _at(0, y, end, top)
        lines.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        lines.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    lines += elements
    lines.append(f'<text x="{LEFT}" y="16" class="title">{title}: {y_label}</text>')
    lines.append(f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 34}" text-anchor="middle">{axis.label}</text>')
    if "baseline" in names:
        lines.append(f'<line x1="{LEFT + WIDTH - 164}" x2="{LEFT + WIDTH - 140}" y1="12" y2="12" class="baseline"/>')
        lines.append(f'<text x="{LEFT + WIDTH - 136}" y="16">{BASELINE}</text>')
    size = f'viewBox="0 0 {LEFT + WIDTH + 18} {TOP + HEIGHT + 42}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">{"".join(lines)}</svg>'


def _ticks(end: float) -> list[float]:
    """Round numbers from 0 to `end`, four to eight of them."""
    step = 10.0 ** np.floor(np.log10(end))
    while end / step < 4:
        step /= 2 if f"{step:e}"[0] in "14" else 2.5 if f"{step:e}"[0] == "5" else 2
    return [float(f"{k * step:.10g}") for k in range(int(end / step + 1e-9) + 1)]
