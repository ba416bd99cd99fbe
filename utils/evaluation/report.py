"""Shows a result: as text for the terminal, and as one HTML page that opens from disk and loads nothing."""

import json
from collections.abc import Mapping
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.errors import one_line
from utils.evaluation.pairs import Pair
from utils.evaluation.scoring import load_prediction, load_truth
from utils.image_io.images import read_rgb
from utils.image_io.panels import data_uri
from utils.intrinsics import INTRINSICS
from utils.kinds.base import ErrorAxis, Rules, higher_is_better
from utils.system.atomic import make_folder, save_bytes

META = '<meta name="evaluation" content="'  # flags and metrics of the run, as JSON
BASELINE = "constant: mean of truth"
PICTURE_WIDTH = 420
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
        lines.append(head + (f" {BASELINE:>24}  {'95 % interval':20}" if other else ""))
        for key, value in row["metrics"].items():
            cells = f"  {key:12} {number(value):>9}  {interval(row, key):20}"
            if other:
                cells += f" {number(other['metrics'][key]):>24}  {interval(other, key):20}"
            lines.append(cells.rstrip())
    return "\n".join(map(one_line, lines))


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
    """Writes `folder`/index.html.

    photos: name of a pair -> its image, where there is one. headline: the metric that ranks images;
    errors: histograms of pixel errors, of `prediction` and maybe `baseline`.
    """
    title = f"{result['task'].capitalize()} evaluation"
    parts = [f"<h1>{title}</h1>", f"<p class=lead>{_lead(result)}</p>"]
    parts += [f"<p class=warning><b>Warning.</b> {escape(warning)}</p>" for warning in result["warnings"]]
    parts += ["<h2>Summary</h2>", _summary(result)]
    parts += [f"<p class=small>{escape(note)}.</p>" for note in result["notes"]]
    counted = {name: counts for name, counts in errors.items() if counts is not None}
    if "prediction" in counted:
        parts += ["<h2>Errors of all valid pixels</h2>", f"<div class=charts>{charts(rules.kind.axis, counted)}</div>"]
    parts += [
        f"<h2>Best, median and worst image by {escape(headline)}</h2>",
        examples(result, headline, pairs, rules, photos),
    ]
    parts += ["<h2>Settings</h2>", _settings(result["settings"])]
    identity = json.dumps({key: result[key] for key in ("flags", "metrics")})
    head, tail = PAGE.replace("TITLE", title).split("BODY")
    page = head.replace(META, META + escape(identity)) + "\n".join(parts) + tail
    make_folder(folder, "--report")
    save_bytes(folder / "index.html", page.encode())


def read_result(path: Path) -> dict | None:
    """What a result file, or a report's page, states of its run: flags and metrics; None if it is neither."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".html":
            text = unescape(text.partition(META)[2].partition('"')[0])
        found = json.loads(text)
        return found if found["metrics"] and (found.get("flags") or found["settings"]) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _lead(result: dict) -> str:
    sizes = ", ".join(f"{size} ({count})" for size, count in result["settings"]["resolution"].items())
    return (
        f"Protocol <b>{escape(result['protocol'])}</b> · {result['images']:,} images · "
        f"{result['pixels']:,} valid pixels · {escape(sizes)} · version {escape(result['settings']['version'])}"
    )


def _summary(result: dict) -> str:
    keys = list(result["metrics"])
    units = INTRINSICS[result["task"]].map_kind.units
    head = ""
    for key in keys:
        arrow = "↑" if higher_is_better(key) else "↓"
        unit = units.get(key, units.get(key.split("_")[0] if key.startswith("below") else "", ""))
        head += f"<th>{escape(key)}&nbsp;{arrow}<small>{unit}</small></th>"
    body = [_summary_row(row, row["row"], keys, "") for row in result["rows"]]
    for row in result.get("baseline", {}).get("rows", ()):
        body.append(_summary_row(row, f"{BASELINE}, {row['row']}", keys, " class=baseline"))
    share = result["settings"]["bootstrap"]
    caption = (
        f"<p class=small>↓ lower is better, ↑ higher is better. Small: 95 % percentile bootstrap over images, "
        f"{share['resamples']:,} resamples, seed {share['seed']}; views of one scene are less independent than it "
        f"assumes. The constant is the mean of this very ground truth, predicted everywhere.</p>"
    )
    return f"<div class=wide><table><tr><th></th><th>images</th>{head}</tr>{''.join(body)}</table></div>{caption}"


def _summary_row(row: dict, name: str, keys: list[str], style: str) -> str:
    cells = "".join(
        f"<td>{number(row['metrics'][key])}<small>{interval(row, key, '{}–{}', 3)}</small></td>" for key in keys
    )
    return f"<tr{style}><th>{escape(name)}</th><td>{row['images']:,}</td>{cells}</tr>"


def _settings(settings: dict) -> str:
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(plain(value))}</td></tr>" for key, value in settings.items()
    )
    return f"<table class=settings>{rows}</table>"


# Charts of all pixel errors ------------------------------------------------------------------------------------------


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
    histogram = _chart(elements, axis, end, top, f"% of pixels, per {width}", "Histogram", shares)
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
    return histogram + _chart(curves, axis, end, 100, "% of pixels below", "Cumulative", shares)


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


def _chart(elements: list[str], axis: ErrorAxis, end: float, top: float, y_label: str, title: str, names: dict) -> str:
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


# The best, the median and the worst image ----------------------------------------------------------------------------


def examples(result: dict, headline: str, pairs: list[Pair], rules: Rules, photos: Mapping[str, Path]) -> str:
    images = [image for image in result["per_image"] if np.isfinite(image.get(headline, np.nan))]
    ranked = sorted(images, key=lambda image: (image[headline], image["name"]))
    if not ranked:
        return ""
    chosen = {"Best": ranked[0], "Median": ranked[(len(ranked) - 1) // 2], "Worst": ranked[-1]}
    by_name = {pair.name: pair for pair in pairs}
    return "".join(
        _example(kind, image, headline, by_name[image["name"]], rules, photos.get(image["name"]))
        for kind, image in chosen.items()
    )


def _example(kind: str, image: dict, headline: str, pair: Pair, rules: Rules, photo: Path | None) -> str:
    caption = (
        f"<h3>{kind} <span>{escape(pair.name)} · {headline} {number(image[headline])} · "
        f"{image['pixels']:,} pixels</span></h3>"
    )
    if pair.gt is None:
        pred, _ = load_prediction(pair, rules, None)
        figure = _figure(_colour_picture(pred[..., [0, -1, -1]] if pred.shape[2] == 1 else pred, None), "prediction")
        return f"{caption}<div class=figures>{figure}</div>"
    truth = load_truth(pair, rules)
    gt, valid = truth.gt, truth.valid
    pred, error = rules.kind.compare(load_prediction(pair, rules, truth)[0], gt, valid, rules)
    maps, note = rules.kind.figures(pred, gt, valid, rules)
    figures = [
        _figure(_colour_picture(values, valid), f"{name}<br><small>{note}</small>")
        for name, values in zip(("prediction", "ground truth"), maps)
    ]
    if photo is not None:
        figures.insert(0, _figure(np.asarray(read_rgb(photo))[truth.window], "image"))
    axis = rules.kind.axis
    figures.append(_figure(_error_picture(error, valid, axis), "error" + _colour_bar(axis)))
    return f"{caption}<div class=figures>{''.join(figures)}</div>"


def _colour_picture(values: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """uint8 (H, W, 3) from values in [0, 1]; pixels that do not count are dark grey."""
    picture = np.rint(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)
    return picture if valid is None else np.where(valid[..., None], picture, np.array(INVALID, np.uint8))


def _error_picture(error: np.ndarray, valid: np.ndarray, axis: ErrorAxis) -> np.ndarray:
    places = np.linspace(0, axis.map_limit, len(ERROR_COLOURS))
    error = np.where(valid, error, 0)
    channels = [np.interp(error, places, [colour[c] for colour in ERROR_COLOURS]) / 255 for c in range(3)]
    return _colour_picture(np.stack(channels, axis=2), valid)


def _colour_bar(axis: ErrorAxis) -> str:
    stops = ", ".join(f"rgb{colour}" for colour in ERROR_COLOURS)
    ticks = "".join(f"<i>{axis.map_limit * k / 4:g}{axis.unit}</i>" for k in range(4))
    return (
        f'<div class=scale style="background:linear-gradient(90deg, {stops})"></div>'
        f"<div class=ticks>{ticks}<i>≥&nbsp;{axis.map_limit:g}{axis.unit}</i></div><small>{axis.label}; "
        "dark grey: no valid ground truth</small>"
    )


def _figure(picture: np.ndarray, caption: str) -> str:
    image = Image.fromarray(picture)
    if image.width > PICTURE_WIDTH:
        height = max(1, round(image.height * PICTURE_WIDTH / image.width))
        image = image.resize((PICTURE_WIDTH, height), Image.Resampling.BOX)
    uri = data_uri(image, "PNG", optimize=True)
    return f'<figure><img alt="" src="{uri}"><figcaption>{caption}</figcaption></figure>'


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="evaluation" content="">
<title>TITLE</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 0 auto; max-width: 1140px;
  padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 34px 0 10px; }
h3 { font-size: 15px; margin: 22px 0 8px; } h3 span { font-weight: 400; color: #5b6675; }
.lead { color: #5b6675; margin: 4px 0 0; } .small, small { color: #6b7686; font-size: 12px; }
.warning { background: #fff5d6; border-left: 4px solid #d99a00; padding: 10px 14px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 7px; font-size: 14px; text-align: right; border-bottom: 1px solid #e3e7ed; white-space: nowrap; }
th { font-weight: 600; } th, td { vertical-align: top; } tr > th:first-child { text-align: left; }
td small, th small { display: block; font-size: 11px; font-weight: 400; }
tr.baseline { background: #f5f6f8; color: #5b6675; } tr.baseline th { font-weight: 400; }
.settings th, .settings td { text-align: left; white-space: normal; padding: 4px 11px; font-size: 13px; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; }
figure { margin: 0; } figure img { width: 100%; display: block; border-radius: 4px; }
figcaption { font-size: 13px; margin-top: 5px; } figcaption small { line-height: 1.3; display: inline-block; }
.scale { height: 10px; border-radius: 2px; margin-top: 5px; }
.ticks { display: flex; justify-content: space-between; font-size: 11px; color: #5b6675; }
.ticks i { font-style: normal; }
svg { width: 100%; font-size: 11px; fill: #5b6675; } svg .title { font-size: 13px; font-weight: 600; fill: #1c2430; }
.grid { stroke: #e7eaef; } .bar { fill: #3a6fd8; } .mark { fill: #fff; stroke: #3a6fd8; stroke-width: 1.6; }
polyline { fill: none; stroke-width: 1.8; } .prediction { stroke: #3a6fd8; }
.baseline { stroke: #8a94a3; stroke-dasharray: 5 4; }
@media (max-width: 760px) { .charts, .figures { grid-template-columns: 1fr; } }
</style>
</head>
<body>
BODY
</body>
</html>
"""
