"""How many files of this project one image enters: bounds for how far a reader has to follow it."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType

import numpy as np
import pytest
from helpers import ROOT, run_here
from PIL import Image

from utils.evaluation.pairs import Pair
from utils.evaluation.scoring import score_pair
from utils.inference import Predictor
from utils.intrinsics import INTRINSICS
from utils.kinds.base import Rules
from utils.noise import generators

FILES_OF_A_STEP, FILES_OF_A_PREDICTION, FUNCTIONS = 12, 8, 31  # two are the base's family and what all share
FILES_OF_A_SCORE = {"normal": 7}  # whether the normals are gamma-coded is read in colour_space.py
FILES_OF_A_SCORE |= dict.fromkeys(("depth", "albedo", "shading"), 6)
PROTOCOLS = {"normal": "per_image", "depth": "plain", "albedo": "scale_aligned", "shading": "scale_aligned"}


def entered(call: Callable[[], object], start: CodeType | None = None) -> dict[str, set[str]]:
    """File of this project -> its functions that `call` runs, comprehensions aside.

    start: of a function; only what runs from its second call to its third counts.
    """
    found: dict[str, set[str]] = {}
    starts = 0

    def watch(frame, event, _):
        nonlocal starts
        path = frame.f_code.co_filename
        starts += event == "call" and frame.f_code is start
        if start is not None and starts != 2:
            return
        if event == "call" and path.startswith(f"{ROOT}/") and "/tests/" not in path and "/.venv/" not in path:
            name = frame.f_code.co_qualname.rpartition(".<locals>.")[2]
            if not name.startswith("<") or name == "<lambda>":
                found.setdefault(path.removeprefix(f"{ROOT}/"), set()).add(name)

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def test_one_step_of_a_training_enters_few_files(flags, tmp_path):
    script = "sd_single_diode_pseudo_normal.py"
    words = flags(script, tmp_path / "run", "--max_train_steps", 3, "--validation_steps", 0)
    found = entered(lambda: run_here(script, words), start=generators.__code__)
    assert "utils/objectives.py" in found and len(found) <= FILES_OF_A_STEP, sorted(found)


@pytest.mark.parametrize("task", INTRINSICS)
def test_one_more_image_enters_few_files(task):
    predict = Predictor(ROOT / "miniworld" / "mini-loras" / task, device="cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    predict(image)
    found = entered(lambda: predict(image))
    assert len(found) <= FILES_OF_A_PREDICTION and sum(map(len, found.values())) <= FUNCTIONS, {
        k: sorted(v) for k, v in found.items()
    }


@pytest.mark.parametrize("task", INTRINSICS)
def test_one_more_score_enters_few_files(task, tmp_path):
    values = np.random.default_rng(0).uniform(0.1, 1, (32, 32, 1 if task == "depth" else 3))
    paths = [Path(tmp_path / f"{name}.npy") for name in ("prediction", "truth")]
    for path in paths:
        np.save(path, values[..., 0] if task == "depth" else values)
    pair, rules = Pair("a", *paths), Rules(INTRINSICS[task], PROTOCOLS[task])
    score_pair(pair, rules)
    found = entered(lambda: score_pair(pair, rules))
    assert len(found) <= FILES_OF_A_SCORE[task], sorted(found)
