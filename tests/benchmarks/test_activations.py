"""The memory that the recipes state is the one that is counted."""

import re

import pytest
from helpers import ROOT
from torch.nn import functional

from benchmarks.activations import CASES, FusedAttention, count


@pytest.mark.slow
@pytest.mark.parametrize(("case", "gigabytes"), zip(CASES, (24, 12, 8, 4)))
def test_a_recipe_states_the_counted_memory(case, gigabytes, monkeypatch):
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda q, k, v, **_: FusedAttention.apply(q, k, v))
    weights, activations = (value / 1e9 for value in count(*case))
    text = (ROOT / "recipes" / f"memory_{gigabytes}gb.txt").read_text()
    stated = [float(number) for number in re.findall(r"(\d\.\d+) GB", text)]
    assert stated == [round(weights, 2), round(activations, 2), round(weights + activations, 1)]
    words = f"--train_batch_size={case[0]}\n", "bf16\n" if case[1] else "--mixed_precision=no\n"
    assert all(word in text for word in words) and ("--gradient_checkpointing" in text) == case[2]
