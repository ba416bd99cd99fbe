"""Several processes without a GPU."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers import PATIENCE, ROOT, fork, python, run_here

from utils.errors import InputError
from utils.system import processes

SCRIPT = "sd_single_diode_pseudo_normal.py"
TRAIN = """
import sys
import torch
import sd_single_diode_pseudo_normal as script
from torch import distributed
from utils.system import processes
script.main(sys.argv[1:])
(group,) = processes._process_groups
print(f"kept: {group.size()} processes, {distributed.is_initialized()=}")
print("patience:", group._get_backend(torch.device("cpu")).options._timeout)
"""
SHARES = """
import os
from utils.system.processes import join, shared_out
join("cpu")
mine = []
found = shared_out(7, lambda number: mine.append(number) or f"result {number}")
print(os.environ["RANK"], mine, found == [f"result {number}" for number in range(7)])
"""


def test_the_process_group_is_kept_after_the_run(flags, tmp_path):
    """Else DDP's reducer may be the last to hold it, and the processes hang at the end of `main`."""
    words = flags(SCRIPT, tmp_path, "--max_train_steps", 1, "--validation_steps", 0)
    done = fork("-c", TRAIN, *words, processes=2)
    assert done.stdout.count("kept: 2 processes, distributed.is_initialized()=False") == 2, done.stdout
    assert done.stdout.count("patience: 6:00:00") == 2, "a rank's share may take longer than the library's timeout"


def test_each_process_computes_its_share_and_has_everything():
    done = fork("-c", SHARES, processes=2)
    assert done.stdout.splitlines() == ["0 [0, 2, 4, 6] True", "1 [1, 3, 5] True"]
    assert processes.shared_out(3, str) == ["0", "1", "2"]  # one process


@pytest.mark.parametrize("script", ["sd_single_diode_pseudo_normal.py", "inference_sd_single.py"])
def test_more_processes_than_gpus_are_refused(script, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    words = ["--lora", "miniworld/mini-loras/normal", "--input_dir", "examples", "--output_dir", str(tmp_path)]
    with pytest.raises(InputError, match=r"--num_processes=3: 2 GPUs on this machine; pass --num_processes 2"):
        run_here(script, words if script.startswith("inference") else flags(script, tmp_path / "run"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    processes.check_gpus()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    processes.check_gpus()


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
    os.write(1, b"ready\\n")  # in one piece
    time.sleep(60)

if "RANK" in os.environ:
    sys.exit(run(main))
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
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    with subprocess.Popen(command, env=env, text=True, start_new_session=True, preexec_fn=heard, **pipes) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and errors == "interrupted\n", errors


ECHO = """
import os, signal, sys
from utils.errors import run

class Interrupting:
    def write(self, text):
        os.kill(os.getpid(), signal.SIGINT)
        return sys.__stderr__.write(text)

    def flush(self):
        sys.__stderr__.flush()

def main():
    sys.stderr = Interrupting()
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
run(main)
"""


def test_the_echo_of_a_ctrl_c_does_not_interrupt_its_handling(tmp_path):
    (tmp_path / "echo.py").write_text(ECHO)
    done = python(tmp_path / "echo.py", env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 130 and done.stderr == "interrupted\n", done.stderr
