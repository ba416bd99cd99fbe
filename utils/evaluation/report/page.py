"""The page: summary, charts, examples and settings in one file of HTML."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from utils.evaluation.pairs import Pair
from utils.evaluation.report.charts import charts
from utils.evaluation.report.examples import examples
from utils.evaluation.report.text import BASELINE, interval, number, plain
from utils.intrinsics import INTRINSICS
from utils.kinds.base import Rules, higher_is_better


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
    folder.mkdir(parents=True, exist_ok=True)
    page = PAGE.replace("TITLE", title).replace("BODY", "\n".join(parts))
    (folder / "index.html").write_text(page, encoding="utf-8")


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


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
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
