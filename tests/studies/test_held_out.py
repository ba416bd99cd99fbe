"""The references for a LoRA on a GAN or an autoregressive generator."""

import numpy as np
import pytest
import torch

from generators.pixel_prediction import label_truth
from studies.held_out import errors, linear_readout, mean_label
from utils.intrinsics import NORMAL


def items(count: int, seed: int) -> list[dict]:
    """Labels that are linear in w."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(4, 3 * 8 * 8, generator=torch.Generator().manual_seed(0))
    found = []
    for w in torch.randn(count, 4, generator=rng):
        target = (0.1 * (w @ mix)).view(3, 8, 8) + torch.tensor([0.0, 0.0, -1.0])[:, None, None]
        gt, valid = label_truth(NORMAL, target)
        found.append({"w": w, "target": target, "gt": gt, "valid": valid})
    return found


def test_a_linear_readout_finds_what_is_linear_and_the_mean_does_not():
    train, unseen = items(50, 1), items(10, 2)
    assert linear_readout(train, unseen, "normal").mean() < 1 < mean_label(train, unseen, "normal").mean()


def test_errors_are_per_image():
    unseen = items(3, 3)
    found = errors(torch.stack([item["target"] for item in unseen]), unseen, NORMAL)
    assert found.shape == (3,) and found.max() == pytest.approx(0, abs=0.1)
    turned = [{**unseen[0], "gt": -unseen[0]["gt"]}, *unseen[1:]]
    assert np.argmax(errors(torch.stack([item["target"] for item in unseen]), turned, NORMAL)) == 0
