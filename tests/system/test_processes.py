"""Several processes without a GPU."""

from helpers import fork

TRAIN = """
import sys
import sd_single_diode_pseudo_normal as script
from torch import distributed
from utils.system import processes
script.main(sys.argv[1:])
(group,) = processes._process_groups
print(f"kept: {group.size()} processes, {distributed.is_initialized()=}")
"""


def test_the_process_group_is_kept_after_the_run(flags, tmp_path):
    """Else DDP's reducer may be the last to hold it, and the processes hang at the end of `main`."""
    words = flags("sd_single_diode_pseudo_normal.py", tmp_path, "--max_train_steps", 1, "--validation_steps", 0)
    done = fork("-c", TRAIN, *words, processes=2)
    assert done.stdout.count("kept: 2 processes, distributed.is_initialized()=False") == 2, done.stdout
