"""Parts of the add-on and the rooms that need no Blender: the zip, the job in parallel to Blender, wrong flags."""

import importlib.util
import os
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT, python

from integrations.blender.addon_zip import ADDON, pack
from utils import __version__

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def job():
    """The class Job of the add-on, whose other modules need Blender."""
    found = importlib.util.spec_from_file_location("job", ADDON / "job.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.Job


def until(condition, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_the_same_files_make_the_same_zip_with_the_manifest_at_its_top(tmp_path):
    pack(tmp_path / "a.zip")
    os.utime(ADDON / "panel.py")
    pack(tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        assert {"__init__.py", "blender_manifest.toml"} <= set(packed.namelist())
        assert all("/" not in name for name in packed.namelist())
        manifest = tomllib.loads(packed.read("blender_manifest.toml").decode())
    assert manifest["blender_version_min"] == "4.2.0" and manifest["version"] == __version__
    assert len(manifest["tagline"]) <= 64 and not manifest["tagline"].endswith(".")  # Blender's rules


def test_a_zip_that_cannot_be_written_is_one_line(tmp_path):
    done = python("-m", "integrations.blender.addon_zip", "--out", tmp_path / "no" / "a.zip", check=False)
    assert done.returncode == 2 and "cannot be written" in done.stderr and "Traceback" not in done.stderr


def test_a_jobs_progress_is_the_bar_in_its_output_or_a_count(job, tmp_path):
    words = [sys.executable, "-c", r"print('loading: 100%|#|\rpredicting normal, depth:  25%|##', end='', flush=True)"]
    running = job(words, ROOT, tmp_path / "a.txt")
    assert (
        until(running.ended) and running.progress() == (0.25, "predicting normal, depth") and running.error() is None
    )
    counted = job(words, ROOT, tmp_path / "b.txt", count=lambda: 3, total=4)
    assert until(counted.ended) and counted.progress() == (0.75, "3 of 4")


@pytest.mark.parametrize(("program", "why"), [
    ("import sys; print('error: no such LoRA', file=sys.stderr); sys.exit(2)", "no such LoRA"),
    ("raise ValueError('defect')", "it failed; its output: "),
])  # fmt: skip
def test_a_failing_job_reports_the_reason(job, program, why, tmp_path):
    running = job([sys.executable, "-c", program], ROOT, tmp_path / "log.txt")
    assert until(running.ended) and running.error().startswith(why)


def test_a_job_does_not_hand_blenders_python_on(job, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/blenders/own")
    words = [sys.executable, "-c", "import os; print(os.environ.get('PYTHONPATH'))"]
    running = job(words, ROOT, tmp_path / "log.txt")
    assert until(running.ended) and running.lines() == ["None"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
def test_cancel_stops_what_the_job_has_started_too(job, tmp_path):
    running = job([sys.executable, "-c", PARENT], ROOT, tmp_path / "log.txt")
    assert until(lambda: running.lines() != [])
    child = int(running.lines()[0].split()[1])
    running.cancel()
    assert running.ended() and running.error() == "cancelled"

    def gone() -> bool:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return True
        with Path(f"/proc/{child}/stat").open() as file:  # an orphan that nobody has waited for yet is dead as well
            return file.read().rpartition(")")[2].split()[0] == "Z"

    assert until(gone)


@pytest.mark.parametrize(("words", "why"), [
    (["--train", "3"], "an even number"),
    (["--bpy_python", "/no/python"], "cannot be run"),
    ([], "has no bpy"),
])  # fmt: skip
def test_wrong_flags_of_the_rooms_are_one_line(words, why, tmp_path):
    done = python("-m", "integrations.blender.rooms", "--out", tmp_path / "rooms", *words, check=False)
    assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr
