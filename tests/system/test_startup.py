"""Messages before the work starts do not need PyTorch, which takes seconds to import."""

import signal
import subprocess
import sys

import pytest
from helpers import PATIENCE, ROOT, SCRIPTS

NEEDED = ["--pretrained_model_name_or_path", "x", "--train_data_dir", "y", "--pseudo_root", "z"]
COMMANDS = [*SCRIPTS, "inference_sd_single.py", "inference_augunet.py", "inference_gan.py", "inference_ar.py",
            "predict.py", "evaluate.py", "evaluate_benchmarks.py", "pseudo_label.py",
            "miniworld.demo", "miniworld.scenes", "utils.lora",
            "dataloaders", "app"]  # fmt: skip


def imported(script: str, *words: str) -> tuple[int | str | None, set[str]]:
    """The exit status of a script with these flags, and which of the slow packages it imported."""
    program = f"""
import runpy, sys
sys.argv = [{script!r}, *{list(words)!r}]
try:
    runpy.{"run_path" if script.endswith(".py") else "run_module"}({script!r}, run_name="__main__")
except SystemExit as end:
    print("\\nSTATUS", end.code, [name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    _, status, *names = done.stdout.strip().splitlines()[-1].split(" ", 2)
    return status, {name.strip("[]',") for name in names[0].split()} - {""}


@pytest.mark.parametrize("script", COMMANDS)
def test_help_needs_no_torch(script):
    assert imported(script, "--help") == ("0", set())


@pytest.mark.parametrize("script", COMMANDS)
def test_a_mistyped_flag_needs_no_torch(script):
    assert imported(script, "--sead", "1") == ("2", set())


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_refused_flag_needs_no_torch(script):
    assert imported(script, *NEEDED, "--prediction_type", "epsilon") == ("2", set())


@pytest.mark.parametrize("words", ["nowhere", "docs --pseudo_root nowhere", "docs --dataset folder"])
def test_missing_data_need_no_torch(words):
    base = ["--pretrained_model_name_or_path", "miniworld/mini-sd", "--pseudo_root", "docs"]
    assert imported(next(iter(SCRIPTS)), *base, "--train_data_dir", *words.split()) == ("2", set())


@pytest.mark.parametrize(("script", "quiet"), [("predict.py", True), ("/elsewhere/theirs.py", False)])
def test_ctrl_c_during_imports_is_one_line_in_our_commands_alone(script, quiet):
    """At the first import of a module of ours, which is before `run` can catch it."""
    program = f"""
import sys
class Interrupt:
    def find_spec(name, *_):
        if name == "utils.errors":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt)
sys.argv = [{script!r}]
import utils.errors
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGINT  # 130 in a shell
    assert (done.stderr == "interrupted\n") == quiet and ("Traceback" in done.stderr) != quiet, done.stderr
