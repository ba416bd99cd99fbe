"""Runs the commands behind the figures of README and docs again, and compares: make figures-check.

    python -m studies.figures_check                          # every page
    python -m studies.figures_check README.md docs/demo.md

A comment after the figures, in the page's source, is either of

    <!-- figures: COMMAND                       <!-- figures +- 2 %: COMMAND
    a part of a line of its output: 0.83        ...
    ... another ... and another part            with a tolerance instead of half a unit of the last digit
    -->                                         -->

    <!-- figures of 2026-11-24 at 1a2b3c4: COMMAND -->        a measurement that is not repeated here: date, commit

A comment without lines follows a table, whose rows are the lines. Commands run in an empty folder with links to the
project. ` && ` joins steps, and a step that several comments have in common runs once.
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import NamedTuple

from utils.cli import Parser, path_flag
from utils.errors import InputError, run
from utils.paths import ROOT

PAGES = ["README.md", "docs/*.md", "studies/README.md", "benchmarks/README.md", "miniworld/*.md", "miniworld/*/*.md"]
FOLDERS = ("docs", "examples", "recipes", "tests")  # besides the packages
COMMENT = re.compile(
    r"<!-- figures(?: \+- (?P<percent>[\d.]+) %| of (?P<date>\d{4}-\d\d-\d\d) at (?P<commit>[0-9a-f]{7}))?: "
    r"(?P<command>.+?)(?<!\\)(?:\n(?P<lines>.*?))? ?-->",
    re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")


class Figures(NamedTuple):
    """One comment. page: relative to the root. above: the text from the heading to it, without comments. date:
    empty where the command is run again. lines: parts of its output.
    """

    page: str
    above: str
    command: str
    date: str
    commit: str
    tolerance: Decimal
    lines: list[str]


def read_figures(page: str, text: str) -> list[Figures]:
    """The comments of a page. InputError: one with a wrong syntax."""
    found = []
    for match in COMMENT.finditer(text):
        section = re.split(r"^#+ .*$", text[: match.start()], flags=re.MULTILINE)[-1]
        above = re.sub(r"<!--.*?-->", "", section, flags=re.DOTALL)
        table = above.rstrip().rsplit("\n\n", 1)[-1].splitlines()
        lines = (match["lines"] or "").splitlines() or [row for row in table if row[:1] == "|" and NUMBER.search(row)]
        lines = [] if match["date"] else lines
        command = re.sub(r"\\\n\s*", "", match["command"])
        tolerance = Decimal(match["percent"] or 0) / 100
        found.append(Figures(page, above, command, match["date"] or "", match["commit"] or "", tolerance, lines))
    if len(found) != len(re.findall(r"<!--\s*figure", text)):
        raise InputError(f"{page}: a figures comment has a wrong syntax (python -m studies.figures_check --help)")
    return found


def all_figures() -> list[Figures]:
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    return [one for path in pages for one in read_figures(str(path.relative_to(ROOT)), path.read_text())]


def plain(text: str) -> str:
    return " ".join(re.sub(r"[*`]", "", text).split())


def holds(row: str, part: str, tolerance: Decimal | None) -> bool:
    """True if `row` has `part`, its numbers within `tolerance` (a share) or their last digit; None: any numbers."""
    values = [Decimal(number.replace(",", "")) for number in NUMBER.findall(part)]
    pattern = f"({NUMBER.pattern})".join(map(re.escape, NUMBER.split(part)))
    matches = re.finditer(f"(?={pattern})", row)  # also overlapping ones
    found = [[Decimal(number.replace(",", "")) for number in match.groups()] for match in matches]
    if tolerance is None:
        return bool(found)
    most = [max(abs(v) * tolerance, Decimal(5).scaleb(int(v.as_tuple().exponent) - 1)) for v in values]
    return any(all(abs(n - v) <= m for n, v, m in zip(numbers, values, most, strict=True)) for numbers in found)


def instead_of(line: str, output: str, tolerance: Decimal) -> str:
    """Empty where a line of `output`, or a paragraph that is not a table, holds all parts of `line`, which "..."
    separates; else the line nearest to it.
    """
    parts = [part.strip() for part in plain(line).split("...")]
    rows = [*output.splitlines(), *(text for text in output.split("\n\n") if "|" not in text)]
    rows = [plain(row) for row in rows]
    if any(all(holds(row, part, tolerance) for part in parts) for row in rows):
        return ""
    return max(rows, key=lambda row: sum(holds(row, one, some) for one in parts for some in (tolerance, None)))


def workspace(folder: Path) -> Path:
    """`folder` with links to everything of the project that a command may need."""
    for path in ROOT.iterdir():
        if path.suffix in (".py", ".toml") or path.name in FOLDERS or (path / "__init__.py").is_file():
            (folder / path.name).symlink_to(path)
    return folder


def check(figures: list[Figures], folder: Path) -> int:
    """Run what is not dated; print a line for each comment. Returns how many lines are off."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}

    @cache
    def output_of(step: str) -> str:
        done = subprocess.run(["bash", "-ec", step], cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{step}: exit status {done.returncode} ({done.stderr.strip().splitlines()[-1:]})")
        return done.stdout

    wrong = 0
    for one in figures:
        if one.date:
            print(f"{one.page}: of {one.date} at {one.commit}: {one.command}", flush=True)
            continue
        output = "\n".join(output_of(step) for step in one.command.split(" && "))
        off = {line: instead for line in one.lines if (instead := instead_of(line, output, one.tolerance))}
        print(f"{one.page}: {len(off)} of {len(one.lines)} lines are off: {one.command}", flush=True)
        for line, instead in off.items():
            print(f"  stated:   {plain(line)}\n  measured: {instead}", flush=True)
        wrong += len(off)
    return wrong


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m studies.figures_check", description=__doc__)
    parser.add_argument("pages", nargs="*", type=path_flag, metavar="page", help="pages (default: all)")
    pages, every = parser.parse_args(argv).pages, all_figures()
    for page in pages:
        if page.resolve() not in {ROOT / one.page for one in every}:
            raise InputError(f"{page}: not a page with figures comments; take of {', '.join(PAGES)}")
    figures = [one for one in every if not pages or ROOT / one.page in {page.resolve() for page in pages}]
    with tempfile.TemporaryDirectory() as folder:
        wrong = check(figures, workspace(Path(folder)))
    used, dated = resource.getrusage(resource.RUSAGE_CHILDREN), sum(bool(one.date) for one in figures)
    print(f"done: {len(figures) - dated} comments checked, {dated} dated; {wrong} lines are off; ", end="")
    print(f"{used.ru_utime + used.ru_stime:.0f} CPU seconds")
    return min(wrong, 1)


if __name__ == "__main__":
    run(main)
