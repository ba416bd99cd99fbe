"""The recipes for GPUs of 4 to 24 GB fit into them, by the counted memory."""

import pytest

from benchmarks.memory import SPARE, largest_batch
from utils.training.args import training_parser

NEEDED = ["--pretrained_model_name_or_path=x", "--train_data_dir=x", "--pseudo_root=x", "--output_dir=x"]


@pytest.mark.parametrize("gigabytes", [4, 8, 12, 24])
def test_a_recipe_fits_into_its_gpu(gigabytes):
    flags = training_parser("", {}).parse_args([*NEEDED, f"@recipes/memory_{gigabytes}gb.txt"])
    how = {"dtype": {"no": "fp32"}.get(flags.mixed_precision, flags.mixed_precision)}
    how["gradient_checkpointing"] = flags.gradient_checkpointing
    assert flags.train_batch_size <= largest_batch(gigabytes - SPARE, **how)
    assert flags.train_batch_size * flags.gradient_accumulation_steps == 4, "the paper's step"
