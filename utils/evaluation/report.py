"""Shows a result: as text for the terminal, and as one HTML page that opens from disk and loads nothing."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.errors import one_line
from utils.evaluation.pairs import Pair
from utils.evaluation.scoring import Truth, load_prediction, load_truth
from utils.image_io.images import read_rgb
from utils.intrinsics import INTRINSICS
from utils.kinds.base import ErrorAxis, Rules, higher_is_better
from utils.pages import data_uri, write_page

META = '<meta name="evaluation" content="'  # flags and metrics of the run, as JSON
BASELINE = "constant: mean of truth"
IMAGE_WIDTH = 420
INVALID = (70, 74, 82)
ERROR_COLOURS = ((13, 8, 55), (98, 20, 122), (196, 51, 92), (247, 138, 43), (252, 244, 170))
LEFT, TOP, WIDTH, HEIGHT = 52, 30, 430, 210


# Text ----------------------------------------------------------------------------------------------------------------


def as_text(result: dict) -> str:
    """The result for a terminal: one block of lines per row, value, interval and baseline side by side."""
    lines = [f"{result['task']}, protocol {result['protocol']}, version {result['settings']['version']}"]
    lines += [f"{key}: {plain(value)}" for key, value in result["settings"].items() if key != "version"]
    lines += [f"note: {note}" for note in result["notes"]]
    lines += [f"WARNING: {warning}" for warning in result["warnings"]]
    baseline = {row["row"]: row for row in result.get("baseline", {}).get("rows", ())}
    for row in result["rows"]:
        lines += ["", f"{row['row']}: {row['images']:,} images, {row['pixels']:,} pixels"]
        other = baseline.get(row["row"])
        head = f"  {'':12} {'value':>9}  {'95 % interval':20}"
        lines.append(head + (f" {BASELINE:>24}  {'95 % interval':20}" if other else "") + "  unit")
        for key, value in row["metrics"].items():
            cells = f"  {key:12} {number(value):>9}  {interval(row, key):20}"
            if other:
                cells += f" {number(other['metrics'][key]):>24}  {interval(other, key):20}"
            lines.append(f"{cells}  {unit_of(result['task'], key)}".rstrip())
    return "\n".join(map(one_line, lines))


def unit_of(task: str, metric: str) -> str:
    """A metric's unit; empty where it has none."""
    return INTRINSICS[task].map_kind.units.get("below" if metric.startswith("below") else metric, "")


def plain(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items())
    if isinstance(value, list):
        return " to ".join(map(plain, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return value if isinstance(value, str) else f"{value:g}"


def number(value: float, digits: int = 4) -> str:
    """Four significant digits: 12.34, 0.09731, 98.20."""
    if not np.isfinite(value):
        return "∞" if value > 0 else "n/a"
    value = float(f"{value:.{digits}g}")  # before counting digits, or 0.99996 becomes 1.0000
    if value and abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:.{max(0, digits - 1 - int(np.clip(np.floor(np.log10(abs(value) or 1)), -3, 3)))}f}"


def interval(row: dict, key: str, form: str = "[{}, {}]", digits: int = 4) -> str:
    if row["intervals"] is None or not np.isfinite(row["intervals"][key]).all():
        return "n/a"
    low, high = row["intervals"][key]
    return form.format(number(low, digits), number(high, digits))


# The page ------------------------------------------------------------------------------------------------------------


def write(
    folder: Path,
    result: dict,
    headline: str,
    errors: dict[str, np.ndarray | None],
    pairs: list[Pair],
    rules: Rules,
    photos: Mapping[str, Path],
) -> None:
    """Writes `folder`/index.html. Raises InputError where it cannot be written.

    photos: name of a pair -> its image, where there is one. headline: the metric that ranks images;
    errors: histograms of pixel errors, of `prediction` and maybe `baseline`.
    """
    of_name = {pair.name: pair for pair in pairs}
    shown = list(examples(result, headline, lambda name: _figures(of_name[name], rules, photos.get(name))))
    write_page(
        folder,
        "--report",
        "report.html",
        title=f"{result['task'].capitalize()} evaluation",
        identity=json.dumps({key: result[key] for key in ("flags", "metrics")}),
        **section(result, headline, errors, shown),
        **FORMATTERS,
    )


def section(result: dict, headline: str, errors: Mapping[str, np.ndarray | None], shown: list[dict]) -> dict:
    """The values of the template's body for one result. shown: its `examples`."""
    counted = {name: counts for name, counts in errors.items() if counts is not None}
    kind = INTRINSICS[result["task"]].map_kind
    return {
        "result": result,
        "settings": result["settings"],
        "baseline_name": BASELINE,
        "baseline_rows": result.get("baseline", {}).get("rows", ()),
        "units": {key: unit_of(result["task"], key) for key in result["metrics"]},
        "axis": kind.axis,
        "error_colours": ", ".join(f"rgb{colour}" for colour in ERROR_COLOURS),
        "charts": charts(kind.axis, counted) if "prediction" in counted else (),
        "headline": headline,
        "examples": shown,
    }


def read_result(path: Path) -> dict | None:
    """The run of a result file or a report's page: flags and metrics; None if it is neither."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".html":
            text = unescape(text.partition(META)[2].partition('"')[0])
        found = json.loads(text)
        return found if found["metrics"] and (found.get("flags") or found["settings"]) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


FORMATTERS = {function.__name__: function for function in (number, interval, plain, higher_is_better)}


@dataclass
class Chart:
    """A diagram in units of its axes, which `x` and `y` turn into pixels. bars: (start, end, height); lines: name ->
    points; marks: points. end, top: of its axes, which begin at 0.
    """

    title: str
    label: str
    end: float
    top: float
    lines: dict[str, list[tuple[float, float]]]
    bars: Sequence[tuple[float, float, float]] = ()
    marks: Sequence[tuple[float, float]] = ()

    def x(self, value: float) -> float:
        return round(float(LEFT + WIDTH * value / self.end), 2)

    def y(self, value: float) -> float:
        return round(float(TOP + HEIGHT * (1 - value / self.top)), 2)

    @property
    def x_ticks(self) -> list[float]:
        return _ticks(self.end)

    @property
    def y_ticks(self) -> list[float]:
        return _ticks(self.top)


def charts(axis: ErrorAxis, errors: dict[str, np.ndarray]) -> list[Chart]:
    """Histogram and cumulative curve of the pixel errors, of the prediction and maybe the baseline."""
    shares = {}
    for name, counts in errors.items():
        cut = counts[:-1].astype(float)
        cut[-1] += counts[-1] if axis.unit else 0  # exactly 180 degrees belongs to the last full bin
        shares[name] = 100 * cut.reshape(-1, axis.bar).sum(axis=1) / counts.sum()
    sums = {name: np.concatenate([[0], np.cumsum(share)]) for name, share in shares.items()}
    reach = [int(np.searchsorted(below, 99.0)) for below in sums.values()]
    bars = min(len(shares["prediction"]), 10 * -(-max(*reach, 10) // 10))
    step, end = axis.bar / axis.per_unit, bars * axis.bar / axis.per_unit
    heights = [(i * step, (i + 1) * step, share) for i, share in enumerate(shares["prediction"][:bars]) if share]
    top = max(share[:bars].max() for share in shares.values()) * 1.08
    outline = [((i + 0.5) * step, share) for i, share in enumerate(shares.get("baseline", ())[:bars])]
    curves = {name: [(i * step, y) for i, y in enumerate(below[: bars + 1])] for name, below in sums.items()}
    places = np.arange(len(sums["prediction"])) * step
    marks = [(mark, float(np.interp(mark, places, sums["prediction"]))) for mark in axis.marks if mark < end]
    unit = f"% of pixels, per {step:g}{axis.unit}"
    return [
        Chart("Histogram", unit, end, top, {"baseline": outline} if outline else {}, bars=heights),
        Chart("Cumulative", "% of pixels below", end, 100, curves, marks=marks),
    ]


def _ticks(end: float) -> list[float]:
    """Round numbers from 0 to `end`, four to eight of them."""
    step = 10.0 ** np.floor(np.log10(end))
    while end / step < 4:
        step /= 2 if f"{step:e}"[0] in "14" else 2.5 if f"{step:e}"[0] == "5" else 2
    return [float(f"{k * step:.10g}") for k in range(int(end / step + 1e-9) + 1)]


def examples(result: dict, headline: str, figures: Callable[[str], list[dict]]) -> Iterator[dict]:
    """The best, the median and the worst image, each with its figures. figures: of the image of a name."""
    images = [image for image in result["per_image"] if np.isfinite(image.get(headline, np.nan))]
    ranked = sorted(images, key=lambda image: (image[headline], image["name"]))
    for rank, index in (("Best", 0), ("Median", (len(ranked) - 1) // 2), ("Worst", -1)):
        if ranked:
            yield {"rank": rank, "image": ranked[index], "figures": figures(ranked[index]["name"])}


def _figures(pair: Pair, rules: Rules, photo: Path | None) -> list[dict]:
    truth = None if pair.gt is None else load_truth(pair, rules)
    image = None if photo is None or truth is None else np.asarray(read_rgb(photo))[truth.window]
    return draw(truth, load_prediction(pair, rules, truth)[0], rules, image)


def draw(truth: Truth | None, pred: np.ndarray, rules: Rules, image: np.ndarray | None) -> list[dict]:
    """The figures of one image, of the sizes of `truth` as it is scored. image: uint8 (H, W, 3)."""
    if truth is None:
        return [_figure("prediction", _colours(pred[..., [0, -1, -1]] if pred.shape[2] == 1 else pred, None))]
    gt, valid, axis = truth.gt, truth.valid, rules.kind.axis
    pred, error = rules.kind.compare(pred, gt, valid, rules)
    maps, note = rules.kind.figures(pred, gt, valid, rules)
    places = np.linspace(0, axis.map_limit, len(ERROR_COLOURS))
    channels = [np.interp(np.where(valid, error, 0), places, levels) / 255 for levels in zip(*ERROR_COLOURS)]
    return [
        *([_figure("image", image)] if image is not None else ()),
        *(_figure(name, _colours(one, valid), note) for name, one in zip(("prediction", "ground truth"), maps)),
        _figure(
            "error", _colours(np.stack(channels, axis=2), valid), f"{axis.label}; dark grey: no valid ground truth"
        ),
    ]


def _colours(values: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """uint8 (H, W, 3) from values in [0, 1]; pixels that do not count are dark grey."""
    pixels = np.rint(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)
    return pixels if valid is None else np.where(valid[..., None], pixels, np.array(INVALID, np.uint8))


def _figure(name: str, pixels: np.ndarray, note: str = "") -> dict[str, str]:
    image = Image.fromarray(pixels)
    if image.width > IMAGE_WIDTH:
        height = max(1, round(image.height * IMAGE_WIDTH / image.width))
        image = image.resize((IMAGE_WIDTH, height), Image.Resampling.BOX)
    return {"name": name, "note": note, "uri": data_uri(image, "PNG", optimize=True)}
