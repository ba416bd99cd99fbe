"""Figures comments: each stands by its numbers and names what exists; a figure that is off is found."""

import re
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest
from helpers import ROOT

from studies import figures_check
from studies.figures_check import NUMBER, Figures, all_figures, check, holds, instead_of, read_figures, workspace
from utils.errors import InputError

FIGURES = all_figures()
PAGE = "docs/pseudo_labels.md"  # with commands of a second


def numbers(text: str) -> set[Decimal]:
    return {Decimal(number.replace(",", "")) for number in NUMBER.findall(text)}


def problems(one: Figures) -> list[str]:
    """Mistakes in a comment that show before its command has run."""
    found = [f"not in the text: {line}" for line in one.lines if not numbers(line) <= numbers(one.above)]
    found += [f"no number: {line}" for line in one.lines if not numbers(line)]
    found += [] if one.date or one.lines else ["no lines, and no table above"]
    modules = re.findall(r"(?:python -m|\bfrom) ([a-z_]+\.[\w.]+)", one.command)
    files = [f"{name.replace('.', '/')}.py" for name in modules if (ROOT / name.split(".")[0]).is_dir()]
    files += re.findall(r"(?:cat|wc -l|python) ([\w/.-]+\.\w+)", one.command)
    found += [f"no such file: {name}" for name in files if not (ROOT / name).is_file()]
    for code in re.findall(r'python -c "(.*?)"', one.command):
        compile(code, one.page, "exec")
    return found


@pytest.mark.parametrize("one", FIGURES, ids=lambda one: f"{one.page}: {one.command[:40]}")
def test_a_comment_stands_by_its_numbers_and_names_what_exists(one):
    assert problems(one) == []


def test_every_page_with_comments_is_checked():
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    marked = {page for page in tracked if "<!-- figures" in Path(ROOT, page).read_text()}
    assert marked - {"CONTRIBUTING.md"} <= {one.page for one in FIGURES} and len(FIGURES) > 30


def test_the_commits_of_dated_figures_exist():
    shallow = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True)
    if shallow.stdout.strip() != "false":
        pytest.skip("not a whole clone")
    for commit in {one.commit for one in FIGURES if one.date}:
        subprocess.run(["git", "cat-file", "-e", commit], cwd=ROOT, check=True)


def test_a_wrong_figure_is_found(tmp_path, capsys):
    text, folder = (ROOT / PAGE).read_text(), workspace(tmp_path)
    assert check(read_figures(PAGE, text), folder) == 0
    in_the_text = text.replace("| 1/992 |", "| 1/929 |")
    first = read_figures(PAGE, in_the_text)[0]
    assert problems(first) == ["not in the text: linear 255 255 sqrt 65025 128 log 992 100"]
    in_both = read_figures(PAGE, in_the_text.replace("log 992", "log 929").replace("0.94 [0.91", "0.93 [0.91"))
    assert not any(map(problems, in_both)) and check(in_both, folder) == 2
    output = capsys.readouterr().out
    assert "measured: linear 255 255 sqrt 65025 127.7" in output and "measured: | sqrt | 0.13" in output


@pytest.mark.parametrize(
    ("part", "row", "tolerance", "expected"),
    [
        ("mean 10.4 [9.74", "mean             10.45  [9.738, 11.26]", "0", True),
        ("mean 10.4 [9.74", "mean             10.46  [9.738, 11.26]", "0", False),
        ("mean 10.4 [9.74", "mean             10.46  [9.738, 11.26]", "0.01", True),
        ("mean 10.4", "median 10.4", "0.01", False),
        ("3,242 0", "batch 4 3242 0", "0", True),
        ("5 6", "4 5 6 7", "0", True),  # matches overlap
        ("2e-16", "2.2e-16", "0", True),
        ("16 GB", "bf16 GB", "0", False),
    ],
)
def test_numbers_agree_to_their_last_digit_or_the_tolerance(part, row, tolerance, expected):
    row = figures_check.plain(row)
    assert holds(row, part, Decimal(tolerance)) == expected


def test_the_parts_of_a_line_are_in_the_same_line():
    output = "| depth | 999 | 1.11 |\n| normal | 400 | 1.42 |\n"
    assert instead_of("normal ... | 1.42", output, Decimal(0)) == ""
    assert instead_of("depth ... | 1.42", output, Decimal(0)).startswith("| depth")


@pytest.mark.parametrize(
    "comment",
    ["<!-- figure: ls -->", "<!-- figures +-2 %: ls -->", "<!-- figures of 2026-11-24: ls -->", "<!--figures: ls -->"],
)
def test_a_comment_of_another_syntax_is_refused(comment):
    with pytest.raises(InputError, match=r"a.md: a figures comment has a wrong syntax"):
        read_figures("a.md", comment)


def test_a_command_that_fails_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"cat nowhere: exit status 1 .*No such file"):
        check(read_figures("a.md", "1\n<!-- figures: cat nowhere\n1\n-->"), tmp_path)


def test_main_returns_the_result_and_knows_its_pages(capsys):
    assert figures_check.main([str(ROOT / "docs" / "extending.md")]) == 0
    assert "done: 1 comments checked, 0 dated; 0 lines are off; " in capsys.readouterr().out
    with pytest.raises(InputError, match=r"setup.py: not a page with figures comments; take of README.md, "):
        figures_check.main(["setup.py"])


def test_make_and_the_weekly_workflow_run_it():
    dry = subprocess.run(["make", "-n", "figures-check"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m studies.figures_check" in dry
    assert "make figures-check" in (ROOT / ".github" / "workflows" / "weekly.yml").read_text()
