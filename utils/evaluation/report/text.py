"""A result in words and numbers, for the terminal and for the page."""

import numpy as np

from utils.errors import one_line

BASELINE = "constant: mean of truth"


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


def plain(value) -> str:
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
