"""Several processes without a GPU: accelerate's launcher does not start them, so we do."""

import os
import sys

import psutil
import torch

from utils.errors import InputError


def start_missing() -> None:
    """Replace this process by the number of processes that `accelerate launch --num_processes N` was asked for.

    On a machine without a GPU the launcher starts one process, whatever N is, and says nothing; with --multi_gpu it
    starts N that do not know of each other. Here the first case is started anew under torchrun; the second is mended
    by `use_cpu`.

    Raises:
        InputError: several machines were asked for, which needs torchrun.
    """
    if "WORLD_SIZE" in os.environ or "MASTER_ADDR" not in os.environ:
        return
    words = psutil.Process().parent().cmdline()
    asked = {
        name: words[i].partition("=")[2] or words[i + 1]
        for i, word in enumerate(words)
        for name in ("--num_processes", "--num_machines")
        if word.partition("=")[0] == name
    }
    if int(asked.get("--num_machines", 1)) > 1:
        raise InputError("several machines without GPUs: start with torchrun --nnodes ... --nproc_per_node ...")
    if int(asked.get("--num_processes", 1)) > 1:
        os.environ.pop("MASTER_ADDR")
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", asked["--num_processes"]]
        os.execv(sys.executable, [sys.executable, *torchrun, *sys.argv])


def use_cpu() -> bool:
    """Whether accelerate must be told to join these processes on the CPU."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available()
