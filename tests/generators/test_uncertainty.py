"""Uncertainty and error: what is compared, and the whole command on an autoregressive generator's LoRA."""

import numpy as np
import pytest
import torch
from helpers import ROOT, run_here

from studies import uncertainty
from utils.errors import InputError
from utils.inference.prediction import Prediction
from utils.intrinsics import NORMAL


def test_an_uncertainty_that_is_the_error_agrees_with_it_on_valid_pixels_alone():
    angle = torch.linspace(0, 1, 64).reshape(8, 8)
    map = torch.stack([angle.sin(), torch.zeros(8, 8), angle.cos()])
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    valid[0, 0] = False
    item = {"gt": torch.tensor([0.0, 0, 1])[:, None, None].expand(3, 8, 8), "valid": valid}
    upwards, downwards = (Prediction(NORMAL, map, sign * torch.rad2deg(angle)) for sign in (1, -1))
    assert uncertainty.agreement(upwards, item) == pytest.approx(1)
    assert uncertainty.agreement(downwards, item) == pytest.approx(-1)
    assert uncertainty.error(upwards, item) == pytest.approx(np.rad2deg(angle[1:].mean().item()), abs=1e-3)


def test_the_command_on_tokens(diode, ar_folder, tmp_path, capsys):
    flags = ["--task", "normal", "--pretrained_model_name_or_path", ar_folder, "--output_dir", tmp_path / "lora"]
    flags += ["--train_data_dir", diode / "normals", "--pseudo_root", diode / "pseudo" / "normal", "--resolution", 32]
    flags += ["--max_train_steps", 1, "--train_batch_size", 2, "--validation_steps", 0, "--report_to", "none"]
    run_here("ar_pseudo.py", [str(flag) for flag in (*flags, "--decoding", "at_once")])
    words = [
        "--lora",
        tmp_path / "lora",
        "--data",
        diode,
        "--members",
        3,
        "--images",
        3,
        "--sheet",
        tmp_path / "a.png",
    ]
    uncertainty.main([str(word) for word in words])
    printed = capsys.readouterr().out
    assert "autoregressive, 3 images, 3 members" in printed and "Spearman's rho" in printed
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_single_step_has_no_uncertainty(diode):
    words = ["--lora", str(ROOT / "miniworld" / "mini-loras" / "normal"), "--data", str(diode)]
    with pytest.raises(InputError, match="normal by single-step"):
        uncertainty.main(words)
