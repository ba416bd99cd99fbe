"""--ema_decay: averages are what is validated and written, weights are what trains on, and both are resumed."""

import json

import pytest
import torch
from helpers import distance, lora, losses, run_here
from torch import nn

from utils.errors import InputError
from utils.lora import read_lora
from utils.training.state import Averages

SCRIPT = "sd_single_diode_pseudo_normal.py"
SHORT = ["--learning_rate", 1e-2, "--checkpointing_steps", 1, "--validation_steps", 2]
RESUME = ["--resume_from_checkpoint", "latest"]


def test_averages_by_hand():
    weight = nn.Parameter(torch.tensor([1.0]))
    averages, expected = Averages([weight], 0.15), 1.0
    for value, decay in ((2.0, 1 / 10), (4.0, 0.15), (-3.0, 0.15)):
        weight.data.fill_(value)
        averages.update()
        expected = decay * expected + (1 - decay) * value
    with averages.applied():
        assert weight.item() == pytest.approx(expected)
        kept = averages.state_dict()
    assert weight.item() == -3 and kept["weights"][0].item() == -3, "what trains on is kept, also while it is aside"
    with pytest.raises(RuntimeError), averages.applied():
        raise RuntimeError
    assert weight.item() == -3
    other = nn.Parameter(torch.tensor([9.0]))
    resumed = Averages([other], 0.15)
    resumed.load_state_dict(kept)
    assert other.item() == -3 and resumed.values[0].item() == pytest.approx(expected) and resumed.steps == 3


def test_none_are_kept_without_a_decay():
    weight = nn.Parameter(torch.ones(3))
    averages = Averages([weight], 0.0)
    averages.update()
    with averages.applied():
        assert averages.values == [] and averages.aside is None


def test_files_hold_the_averages_and_the_training_is_the_same(flags, tmp_path):
    for name, more in (("plain", []), ("ema", ["--ema_decay", 0.9])):
        run_here(SCRIPT, flags(SCRIPT, tmp_path / name, "--max_train_steps", 4, *SHORT, *more))
    assert losses(tmp_path / "ema") == losses(tmp_path / "plain")
    start, *steps = (lora(tmp_path / "plain" / f"checkpoint-{step}") for step in (1, 2, 3, 4))
    expected = {key: 0.9 * value for key, value in start.items()}  # after one step: 0.1 of the beginning, 0.9 of it
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "none", "--max_train_steps", 1, "--learning_rate", 1e-30))
    expected = {key: value + 0.1 * lora(tmp_path / "none")[key] for key, value in expected.items()}
    for count, weights in enumerate(steps, 1):
        decay = (1 + count) / (10 + count)
        expected = {key: decay * value + (1 - decay) * weights[key] for key, value in expected.items()}
    found = lora(tmp_path / "ema")
    assert all(torch.allclose(found[key], value, atol=1e-6) for key, value in expected.items())
    assert distance(tmp_path / "ema", tmp_path / "plain") > 1e-3
    assert distance(tmp_path / "ema" / "checkpoint-4", tmp_path / "ema") == 0
    assert read_lora(tmp_path / "ema").metadata["ema_decay"] == "0.9"
    assert "ema_decay" not in read_lora(tmp_path / "plain").metadata


def test_the_averages_are_what_is_validated(flags, tmp_path):
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "ema", "--max_train_steps", 2, *SHORT, "--ema_decay", 0.9))
    again = ["--max_train_steps", 1, *SHORT, "--lora_path", tmp_path / "ema"]
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "again", *again))

    def scores(name: str, step: int) -> dict:
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return {key: value for line in lines if line["step"] == step for key, value in line.items() if "val/" in key}

    assert scores("ema", 2) == pytest.approx(scores("again", 0)) and scores("ema", 2)


def test_a_resumed_run_is_the_unbroken_one(flags, tmp_path):
    words = [*SHORT, "--ema_decay", 0.9]
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "whole", "--max_train_steps", 4, *words))
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "cut", "--max_train_steps", 2, *words))
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "cut", "--max_train_steps", 4, *words, *RESUME))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert distance(tmp_path / "cut", tmp_path / "whole") == 0


def test_another_decay_is_another_experiment(flags, tmp_path):
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1, *SHORT))
    more = ["--max_train_steps", 2, *SHORT, *RESUME, "--ema_decay", 0.9]
    for force in ([], ["--force_resume"]):
        with pytest.raises(InputError, match=r"ema_decay was 0.0, now 0.9; use another --output_dir$"):
            run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", *more, *force))
    with pytest.raises(InputError, match=r"--ema_decay=1\.0: must be at least 0 and less than 1"):
        run_here(SCRIPT, flags(SCRIPT, tmp_path / "new", "--max_train_steps", 2, "--ema_decay", 1))
