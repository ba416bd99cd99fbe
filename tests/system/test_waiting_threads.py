"""OpenMP's threads sleep while they wait, in every command, unless the user's variables say otherwise."""

import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, python

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
UNSET = dict.fromkeys(VARIABLES)
PACKAGES = ("app", "benchmarks", "dataloaders", "miniworld", "studies", "utils")
COMMANDS = [
    str(path.relative_to(ROOT))
    for folder in ("*.py", *(f"{name}/**/*.py" for name in PACKAGES))
    for path in sorted(ROOT.glob(folder))
    if 'if __name__ == "__main__"' in path.read_text() and path.name != "intrinsic_lora.py"  # prints, computes nothing
]
# the environment when PyTorch is imported, or at the end of --help where that is before
AT_IMPORT = """
import importlib, os, runpy, sys

class Stop(BaseException): ...

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise Stop

sys.meta_path.insert(0, Watch())
sys.argv = [sys.argv[1], "--help"]
try:
    if sys.argv[0].count("/"):
        name = sys.argv[0].removesuffix(".py").replace("/", ".").removesuffix(".__main__")
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
except (SystemExit, Stop, ModuleNotFoundError) as end:
    print("\\nENDED", type(end).__name__, getattr(end, "name", None), os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_policy_is_set_before_torch_is_imported(command):
    last = python("-c", AT_IMPORT, command, env=UNSET).stdout.strip().splitlines()[-1].split()
    assert last[0] == "ENDED" and last[-1] == "passive", last


LIBRARY = next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None)
LOAD = f"import ctypes; ctypes.CDLL({str(LIBRARY)!r})"  # as PyTorch does, without its other seconds


def spins(program: str, env: dict | None = None) -> int:
    """How often a waiting thread of GNU's library looks for work before it sleeps, by its own report on loading."""
    done = python("-c", program, env={**UNSET, "OMP_DISPLAY_ENV": "verbose", **(env or {})})
    return int(re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP library, which PyTorch brings for Linux")
@pytest.mark.parametrize("program", ["import utils, torch", "from utils.inference import Predictor"])
def test_the_library_follows(program):
    assert spins(LOAD) > 0 == spins(program)


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP library, which PyTorch brings for Linux")
@pytest.mark.parametrize(("variable", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "700")])
def test_a_users_own_value_wins(variable, value):
    own = {variable: value}
    assert spins(f"import utils; {LOAD}", own) == spins(LOAD, own) > 0


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_users_own_variable_is_left_alone(variable):
    program = f"import os, utils; print([os.environ.get(name) for name in {VARIABLES}])"
    expected = ["active" if name == variable else None for name in VARIABLES]
    assert python("-c", program, env={**UNSET, variable: "active"}).stdout.strip() == str(expected)
