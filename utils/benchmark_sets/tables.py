"""The field's table: our rows next to published ones, as text, Markdown, JSON and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils import __version__
from utils.benchmark_sets.sets import SETS, BenchmarkSet
from utils.errors import note, one_line
from utils.evaluation import report
from utils.pages import write_page
from utils.system.atomic import json_object, save_bytes, write_json

UNSTATED = "not stated"
COLUMNS = {  # task -> metric: (title, digits after the point, factor)
    "normal": {"mean": ("mean", 2, 1), "median": ("median", 2, 1), "below_11.25": ("11.25°", 1, 1),
               "below_22.5": ("22.5°", 1, 1), "below_30": ("30°", 1, 1)},
    "depth": {"abs_rel": ("AbsRel %", 2, 100), "delta1": ("delta1 %", 1, 100)},
    "albedo": {"whdr": ("WHDR %", 1, 100), "psnr": ("PSNR", 2, 1), "ssim": ("SSIM", 3, 1)},
    "shading": {"psnr": ("PSNR", 2, 1), "ssim": ("SSIM", 3, 1)},
}  # fmt: skip
FOOT = {
    "†": "published by others, by another protocol than this set's or by one that the source does not state",
    "s": "a sample (--limit), not the set",
    "!": "see the warnings",
}


class Published(NamedTuple):
    """One method's published numbers. values: family of a set -> metric -> number, in this table's units."""

    method: str
    source: str
    protocol: str
    task: str
    values: Mapping[str, Mapping[str, float]]


def _each(metric: str, **values: float) -> dict[str, dict[str, float]]:
    return {family: {metric: value} for family, value in values.items()}


PUBLISHED = (
    Published("Marigold V2", "arXiv 2609.08084", UNSTATED, "normal",
              _each("mean", nyuv2=16.6, scannet=14.1, ibims=15.9, sintel=28.7)),
    Published("ReChannel-9B", "arXiv 2607.06553", UNSTATED, "normal",
              _each("mean", nyuv2=15.6, scannet=13.9, ibims=15.1)),
    Published("ReChannel-4B", "arXiv 2607.06553", UNSTATED, "normal",
              _each("mean", nyuv2=15.8, scannet=14.3, ibims=15.5)),
    Published("Edit2Perceive", "arXiv 2511.18673", UNSTATED, "normal",
              _each("mean", nyuv2=15.7, scannet=14.1, ibims=15.1)),
    Published("Lotus-2", "arXiv 2512.01030", UNSTATED, "normal",
              _each("mean", nyuv2=16.9, scannet=14.2, ibims=15.4)),
    Published("MoGe-2", "microsoft/MoGe", UNSTATED, "normal",
              _each("mean", nyuv2=14.7, scannet=12.8, ibims=14.7)),
    Published("Marigold V2", "arXiv 2609.08084", "not Marigold's", "depth",
              _each("abs_rel", nyuv2=3.6, kitti=5.4, eth3d=2.8)),
    Published("Lotus-2", "arXiv 2512.01030", UNSTATED, "depth", _each("abs_rel", nyuv2=4.1, kitti=6.7, eth3d=4.6)),
    Published("FE2E", "arXiv 2509.04338", UNSTATED, "depth", _each("abs_rel", nyuv2=4.1, kitti=6.6, eth3d=3.8)),
)  # fmt: skip
NOTICE = (
    "Numbers of different protocols do not compare. The evaluation of the Intrinsic LoRA paper (2311.17137) was never "
    "released: nothing here reproduces its tables."
)


class Line(NamedTuple):
    """One line of a table. cells: by column."""

    set: str
    images: str
    row: str
    protocol: str
    marks: str
    cells: list[str]
    published: bool


def tables(results: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[str], list[Line]]]:
    """Task -> (titles of its columns, lines): of each set our rows, then what is published on it."""
    found: dict[str, tuple[list[str], list[Line]]] = {}
    for task, columns in COLUMNS.items():
        lines = []
        for one in SETS:
            ours = [result for result in results if result["set"] == one.name and result["task"] == task]
            lines += [_ours(one, result) for result in ours]
            lines += [
                _published(one, row) for row in PUBLISHED if ours and row.task == task and one.family in row.values
            ]
        if lines:
            found[task] = ([title for title, _, _ in columns.values()], lines)
    return found


def _ours(one: BenchmarkSet, result: Mapping[str, Any]) -> Line:
    images = f"{result['images']:,}" + ("" if result["images"] == one.count else f" of {one.count:,}")
    marks = ("s" if result["sample"] else "") + ("!" if result["warnings"] else "")
    metrics = _restored(result["metrics"])
    cells = [_cell(metrics.get(key), *form) for key, form in COLUMNS[result["task"]].items()]
    return Line(one.name, images, result["row"], f"{one.source}, {one.aggregation}", marks, cells, False)


def _published(one: BenchmarkSet, row: Published) -> Line:
    columns = COLUMNS[row.task].items()
    cells = [_cell(row.values[one.family].get(key), title, 1, 1) for key, (title, _, _) in columns]
    return Line(one.name, "", f"{row.method} ({row.source})", row.protocol, "†", cells, True)


def _cell(value: float | None, title: str, digits: int, factor: float) -> str:
    if value is None:
        return "-"
    return f"{factor * value:.{digits}f}" if np.isfinite(value) else "∞"


def as_text(results: Sequence[Mapping[str, Any]]) -> str:
    """For a terminal."""
    lines: list[str] = []
    for task, (titles, rows) in tables(results).items():
        lines += ["", f"{task}: {units_of(task)}"]
        head = ["set", "images", "row", "protocol", "", *titles]
        body = [[row.set, row.images, row.row, row.protocol, row.marks, *row.cells] for row in rows]
        body = [[cell if i or n == 0 or line[0] != body[n - 1][0] else "" for i, cell in enumerate(line)]
                for n, line in enumerate(body)]  # fmt: skip
        widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
        for line in (head, *body):
            cells = [
                cell.ljust(w) if i in (0, 2, 3, 4) else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))
            ]
            lines.append(("  " + "  ".join(cells)).rstrip())
    lines += ["", *footnotes(results)]
    return "\n".join(map(one_line, lines))


def units_of(task: str) -> str:
    return {"normal": "angles in degrees, and percent below", "depth": "after one scale and shift per image"}.get(
        task, "PSNR in dB"
    )


def footnotes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Marks and warnings, a line each."""
    rows = [line for _, lines in tables(results).values() for line in lines]
    lines = [f"{mark}  {text}" for mark, text in FOOT.items() if any(mark in row.marks for row in rows)]
    for result in results:
        lines += [f"WARNING: {result['row']} on {result['set']}: {text}" for text in result["warnings"]]
    return [*lines, NOTICE]


def as_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The same tables in Markdown."""
    parts = [f"# Scores on the field's test sets\n\nVersion {__version__}.\n"]
    for task, (titles, rows) in tables(results).items():
        parts.append(f"## {task.capitalize()}\n\n{units_of(task)}\n")
        parts.append(f"| set | images | row | protocol | | {' | '.join(titles)} |")
        parts.append(f"|---|---|---|---|---|{'---|' * len(titles)}")
        for row in rows:
            cells = [row.set, row.images, row.row, row.protocol, row.marks, *row.cells]
            parts.append(f"| {' | '.join(one_line(cell).replace('|', '/') for cell in cells)} |")
        parts.append("")
    return "\n".join([*parts, *(f"* {one_line(line)}" for line in footnotes(results)), ""])


def write_all(folder: Path, results: Sequence[Mapping[str, Any]], refused: Sequence[Mapping[str, str]]) -> Path:
    """`folder`/results.json, results.md and index.html, whose path is returned. results.json has everything but the
    figures and the single images, which are in each set's own result. A note names rows of an earlier run that the
    three files lose.
    """
    left = ("examples", "errors", "per_image", "headline")
    rows = [{key: value for key, value in result.items() if key not in left} for result in results]
    families = {one.family for one in SETS for result in results if one.name == result["set"]}
    published = [row._asdict() for row in PUBLISHED if families & set(row.values)]
    content = {"version": __version__, "notice": NOTICE, "results": rows, "refused": refused, "published": published}
    earlier: list[dict] = []
    with suppress(OSError, ValueError, LookupError):
        earlier = json_object((folder / "results.json").read_text())["results"]
    now = {(row["set"], row["row"]) for row in rows}
    if lost := [f"{row['row']} on {row['set']}" for row in earlier if (row["set"], row["row"]) not in now]:
        note(f"{folder / 'results.json'}: without {len(lost)} results of an earlier run ({', '.join(lost[:3])}); "
            "name them again to keep them: they are not scored twice")  # fmt: skip
    write_json(folder / "results.json", content)
    save_bytes(folder / "results.md", as_markdown(results).encode())
    return write_report(folder, results)


def write_report(folder: Path, results: Sequence[Mapping[str, Any]]) -> Path:
    """`folder`/index.html: the tables, and evaluate.py's report of every row and set as a tab."""
    sections = []
    for result in results:
        errors = {"prediction": None if result["errors"] is None else np.array(result["errors"])}
        restored = {**result, "metrics": _restored(result["metrics"])}
        restored["rows"] = [{**row, "metrics": _restored(row["metrics"])} for row in result["rows"]]
        sections.append(report.section(restored, result["headline"], errors, result["examples"]))
    return write_page(
        folder,
        "--output_dir",
        "benchmark_sets.html",
        title="Scores on the field's test sets",
        tables=tables(results),
        units_of=units_of,
        footnotes=footnotes(results),
        sections=sections,
        names=[f"{result['set']} · {result['row']}" for result in results],
        **report.FORMATTERS,
    )


def _restored(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """JSON's null is an infinite number, which PSNR alone has, or an undefined one."""
    return {
        key: float("inf" if key == "psnr" else "nan") if value is None else value for key, value in metrics.items()
    }
