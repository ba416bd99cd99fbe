"""The function for notebooks that compares predictions with truth under every other convention."""

import numpy as np
import pytest
import torch

from studies.conventions import shots
from utils.errors import InputError
from utils.inference import Prediction, check_conventions
from utils.intrinsics import DEPTH, INTRINSICS, NORMAL


def prediction(task, label):
    return Prediction(INTRINSICS[task], torch.from_numpy(np.ascontiguousarray(label)).permute(2, 0, 1).float())


@pytest.mark.parametrize("task", INTRINSICS)
def test_right_predictions_are_left_alone_and_wrong_ones_named(task):
    scenes = shots(task, 6, (0,))
    truths = [shot.truth[..., 0] if task == "depth" else shot.truth for shot in scenes]
    known = [shot.known for shot in scenes]
    assert check_conventions([prediction(task, shot.label) for shot in scenes], truths, known) == []
    wrong = {"normal": lambda n: n[..., ::-1], "depth": lambda d: -d}.get(task, lambda v: 2 * (v / 2 + 0.5) ** 2.2 - 1)
    lines = check_conventions([prediction(task, wrong(shot.label)) for shot in scenes], truths, known)
    assert len(lines) == 1 and "6 of 6 images agree: sure" in lines[0] and task in lines[0]
    assert "likely" in check_conventions(prediction(task, wrong(scenes[0].label)), truths[0], known[0])[0]


def test_a_mirrored_truth_and_exchanged_truths_are_named():
    scenes = shots("normal", 4, (0,))
    maps = [prediction("normal", shot.label) for shot in scenes]
    (line,) = check_conventions(maps, [shot.truth[:, ::-1] for shot in scenes])
    assert "mirroring left to right of the predicted normal maps" in line and "neither flipped" in line
    (line,) = check_conventions(maps, [shot.truth for shot in scenes[1:] + scenes[:1]])
    assert "exchanging the images" in line and "of its own image" in line


def test_one_truth_for_each_prediction_of_one_intrinsic():
    flat = np.zeros((4, 4, 3))
    with pytest.raises(InputError, match="as many truths"):
        check_conventions([prediction("normal", flat)] * 2, [flat])
    with pytest.raises(InputError, match="of one intrinsic"):
        check_conventions([prediction(NORMAL.name, flat), prediction(DEPTH.name, flat)], [flat, flat[..., 0]])
