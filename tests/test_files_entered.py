"""How many files of this project one image enters: bounds for how far a reader has to follow it."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from utils.evaluation.pairs import Pair
from utils.evaluation.scoring import score_pair
from utils.inference import Predictor
from utils.intrinsics import INTRINSICS
from utils.kinds.base import Rules

FILES_OF_A_PREDICTION, FUNCTIONS, FILES_OF_A_SCORE = 6, 30, 7
PROTOCOLS = {"normal": "per_image", "depth": "plain", "albedo": "scale_aligned", "shading": "scale_aligned"}


def entered(call: Callable[[], object]) -> dict[str, set[str]]:
    """File of this project -> its functions that `call` runs, comprehensions aside."""
    found: dict[str, set[str]] = {}

    def watch(frame, event, _):
        path = frame.f_code.co_filename
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
    assert len(found) <= FILES_OF_A_SCORE, sorted(found)
