"""Modules, flags and make targets that README and docs name exist."""

import re
import runpy
import sys
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

FOLDERS = "docs studies benchmarks interop utils integrations miniworld".split()
CODE_FOLDERS = [*FOLDERS, "app", "dataloaders", "generators", "tests"]
PAGES = [
    page
    for page in sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
    if page.name != "CHANGELOG.md"
]
FIGURES = r"<!-- figures[^:]*: (?:\\.|[^\\\n])*"  # the command of a comment that studies/figures_check.py reads
CODE = re.compile(rf"{FIGURES}|^```.*?^```|`[^`]+`", re.DOTALL | re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--([a-zA-Z][\w-]*)")
OTHER_PROGRAMS = {"config_file", "num_processes", "fp32-text-enc", "logdir", "local-dir"}  # accelerate, ComfyUI, ...
OTHER_PROGRAMS |= {"collect-only", "no-deps", "disable-pip"}  # pytest, pip-audit
OTHER_PROGRAMS |= set(  # accelerate launch, torchrun and Slurm
    "multi_gpu num_machines machine_rank main_process_ip main_process_port nnodes nproc_per_node max_restarts "
    "rdzv_backend rdzv_endpoint nodes ntasks-per-node gpus-per-node signal requeue".split()
)
COMMANDS_OF_TWO_WORDS = {"dataloaders", "utils.lora"}


def code(page: Path) -> str:
    """The code of a page, blocks, inline and in figures comments, each command on one line."""
    parts = [part if part.startswith("```") else part.replace("\n", " ") for part in CODE.findall(page.read_text())]
    return re.sub(r" *\\\n *", " ", "\n".join(parts))


def module_commands(text: str) -> set[tuple[str, ...]]:
    """(module, [subcommand,] flags ...) of every `python -m` of a module of this project."""
    found = set()
    for module, rest in re.findall(r"python -m ([\w.]+)((?:(?!&&)[^`\n#])*)", text):
        if (ROOT / module.split(".")[0]).is_dir():
            first = re.match(r" (\w+)", rest) if module in COMMANDS_OF_TWO_WORDS else None
            found.add((module, *(first.groups() if first else ()), *(f"--{flag}" for flag in FLAG.findall(rest))))
    return found


COMMANDS = sorted({command for page in PAGES for command in module_commands(code(page))})


@cache
def help_text(*words: str) -> str:
    """Output of `python -m words --help`, run in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [*words, "--help"])
        lines: list[str] = []
        patch.setattr("sys.stdout.write", lines.append)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    assert not ended.value.code
    return "".join(lines)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_module_runs_and_has_the_flags(command):
    flags = {word for word in command if word.startswith("--")}
    text = help_text(*(word for word in command if word not in flags))
    assert {flag for flag in flags if not re.search(rf"{flag}\b", text)} == set()


@cache
def defined_flags() -> frozenset[str]:
    """Every flag that a string of the project's code begins with."""
    files = [*ROOT.glob("*.py"), *(path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    texts = [path.read_text() for path in files if path != Path(__file__)]
    return frozenset(flag for text in texts for flag in re.findall(r"""["']--(\w[\w-]*)""", text))


def unknown_flags(text: str) -> set[str]:
    return {flag for flag in FLAG.findall(text) if not {flag, flag.removeprefix("no-")} & defined_flags()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_flag_on_the_page_exists(page):
    assert unknown_flags(code(page)) <= OTHER_PROGRAMS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_make_target_on_the_page_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", code(page), re.MULTILINE)) <= targets


def test_what_does_not_exist_is_found():
    assert unknown_flags("--rank 8 --no-center_crop --colour_of_the_sky") == {"colour_of_the_sky"}
    assert module_commands("python -m utils.lora convert a b --format x\npython -m pytest -q") == {
        ("utils.lora", "convert", "--format")
    }
