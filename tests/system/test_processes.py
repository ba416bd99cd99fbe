"""Several processes without a GPU."""

import os
import signal
import subprocess
import sys

from helpers import ROOT, fork, python

SCRIPT = "sd_single_diode_pseudo_normal.py"
TRAIN = """
import sys
import sd_single_diode_pseudo_normal as script
from torch import distributed
from utils.system import processes
script.main(sys.argv[1:])
(group,) = processes._process_groups
print(f"kept: {group.size()} processes, {distributed.is_initialized()=}")
"""


def test_the_process_group_is_kept_after_the_run(flags, tmp_path):
    """Else DDP's reducer may be the last to hold it, and the processes hang at the end of `main`."""
    words = flags(SCRIPT, tmp_path, "--max_train_steps", 1, "--validation_steps", 0)
    done = fork("-c", TRAIN, *words, processes=2)
    assert done.stdout.count("kept: 2 processes, distributed.is_initialized()=False") == 2, done.stdout


def test_a_direct_run_ends_with_the_error_and_status_2(flags, tmp_path):
    done = python(SCRIPT, *flags(SCRIPT, tmp_path / "run", "--train_data_dir", "no/such/folder"), check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "no/such/folder" in done.stderr


RANKS = """
import os, sys, time
from utils.errors import InputError, run
from utils.system.processes import supervise

def main():
    if sys.argv[1] == "error":
        raise InputError("--flag: is wrong; change it")
    print("ready", flush=True)
    time.sleep(60)

if "RANK" in os.environ:
    run(main)
sys.exit(supervise([sys.executable, *sys.argv], 2))
"""


def test_an_error_of_several_processes_is_named_once_and_last(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    done = python(tmp_path / "ranks.py", "error", env={"PYTHONPATH": str(ROOT)}, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and done.stderr.count("--flag: is wrong") == 1, done.stderr
    assert lines[-1].startswith("error: process ") and lines[-1].endswith("--flag: is wrong; change it")


def test_ctrl_c_ends_several_processes_with_one_line_and_status_130(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, str(tmp_path / "ranks.py"), "wait"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, text=True, start_new_session=True, **pipes) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "interrupted\n", errors
