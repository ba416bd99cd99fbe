"""`pip install .`: the dependencies, the extras, and a command that prints how to run. No network."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest
from helpers import ROOT


def lines(name: str) -> set[str]:
    """The requirements in a file, without comments, spaces and `-r`."""
    words = {re.sub(r"\s*(#.*)?$", "", line) for line in (ROOT / name).read_text().splitlines()}
    return {word for word in words if word and not word.startswith("-r")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Distribution:
    """The project, built and installed into a folder, from a copy of what a build reads."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name in ("pyproject.toml", "README.md", "LICENSE", "intrinsic_lora.py", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    (source / "utils").mkdir()
    shutil.copy(ROOT / "utils/__init__.py", source / "utils")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*words, "--target", target, source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return PathDistribution(next(target.glob("*.dist-info")))


def test_the_dependencies_are_those_of_requirements_txt(installed):
    plain = [text for text in installed.requires or [] if "extra" not in text]
    names = {re.split(r"[<>=]", text)[0] for text in lines("requirements.txt")}
    assert {re.split(r"[<>=]", text)[0] for text in plain} == names


def test_the_extras_are_those_of_requirements_extra_txt(installed):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    everything = extras.pop("all")
    assert {text for group in extras.values() for text in group} == lines("requirements-extra.txt")
    assert everything == [f"intrinsic-lora[{','.join(extras)}]"]
    assert set(installed.metadata.get_all("Provides-Extra") or []) == {*extras, "all"}


def test_nothing_but_the_command_is_installed(installed):
    """Folders called `utils` and `app` in site-packages would hide those of others."""
    tops = {Path(file).parts[0] for file in installed.files or []} - {"..", "__pycache__"}
    assert {top for top in tops if not top.endswith(".dist-info")} <= {"intrinsic_lora.py", "bin"}


@pytest.mark.parametrize("in_clone", [True, False])
def test_the_command_prints_how_to_run(installed, in_clone, tmp_path):
    (entry,) = installed.entry_points
    program = f"from {entry.module} import {entry.attr}; {entry.attr}()"
    env = {**os.environ, "PYTHONPATH": str(installed.locate_file("")), "PYTHONSAFEPATH": "1"}
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOT if in_clone else tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and (f"cd {ROOT}" if in_clone else "git clone ") in done.stdout, done
    for script in re.findall(r"python (\S+\.py)", done.stdout):
        assert (ROOT / script).is_file()


@pytest.mark.parametrize(("program", "text"), [
    ("no-such-python", "PYTHON=no-such-python: there is no such program"),
    ("./old", "PYTHON=./old is older than Python 3.11"),
])  # fmt: skip
def test_make_names_a_python_that_cannot_be_used(program, text, tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / "old").write_text("#!/bin/sh\nexit 1\n")  # what an old Python answers to the question for 3.11
    (tmp_path / "old").chmod(0o755)
    done = subprocess.run(["make", "install", f"PYTHON={program}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and text in done.stdout + done.stderr, done
    assert not (tmp_path / ".venv").exists()


def test_the_readme_clones_first_and_every_command_is_whole():
    section = (ROOT / "README.md").read_text().split("## Install")[1].split("\n## ")[0]
    clone, pip = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    (uv,) = re.findall(r"`(uv venv .*?)`", section)
    assert clone.startswith("git clone ") and clone.endswith(" && make install\n")
    assert all('-c constraints.txt -e ".[all]"' in command for command in (pip, uv))
