"""Several processes: started here where there is no GPU, because accelerate's launcher does not, and joined."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from utils.errors import InputError, one_line
from utils.system import environment, signals

if TYPE_CHECKING:
    from accelerate import PartialState

PATIENCE = timedelta(hours=6)  # processes wait for each other's shares, such as a latent cache's; NCCL's own: 10 min
Result = TypeVar("Result")
_process_groups: list[object] = []  # see `keep_process_group`


def available_cores() -> int:
    """The cores that this process may use, if the system reports them, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def io_threads(most: int) -> int:
    """Threads of this process that read and write files: its share of the machine's cores, at most `most`."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)  # processes
    return max(1, min(most, available_cores() // here))


def start_missing() -> None:
    """Replace this process by the number of processes that `accelerate launch` was asked for, by --num_processes N or
    by its file. To be called once the flags are checked, before anything slow is imported.

    On a machine without a GPU the launcher starts one process, whatever N is, without a message; with --multi_gpu it
    starts N that are not connected. `supervise` fixes the first case, `use_cpu` the second.

    Raises:
        InputError: several machines were asked for, which needs torchrun.
    """
    if "WORLD_SIZE" in os.environ or "MASTER_ADDR" not in os.environ:
        return
    above = environment.launcher()
    if above is None:
        return
    machines, count = (number_of(above, name) for name in ("num_machines", "num_processes"))
    if machines > 1:
        raise InputError("several machines without GPUs: start with torchrun --nnodes ... --nproc_per_node ...")
    if count > 1:
        sys.exit(supervise([sys.executable, *sys.argv], count))


def number_of(above: environment.Launcher, name: str) -> int:
    """`num_processes` or `num_machines` of the launcher's flags or, where they have none, of its file; else 1."""
    if flag := environment.option(above.words, f"--{name}"):
        return int(flag)
    if above.file is None:
        return 1
    import yaml  # only where there is a file to read

    return int(yaml.safe_load(above.file.read_text()).get(name) or 1)  # of JSON too, which is YAML


def supervise(command: list[str], count: int) -> int:
    """Run `command` in `count` connected processes and forward signals to them; returns their common exit status.

    When one fails, the others are ended immediately, and its error is printed last: theirs are only consequences.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", 1)}
    with tempfile.TemporaryDirectory() as folder:
        running: list[subprocess.Popen] = []
        passed_on = set()

        def pass_on(number: int, _frame: object) -> None:
            passed_on.add(number)
            for process in running:
                process.send_signal(number)

        for number in signals.STOPPING:  # before any process is started, so that none misses a signal
            signal.signal(number, pass_on)
        signals.follow_parent()
        for rank in range(count):
            own = {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_ERROR_FILE": Path(folder, f"{rank}.json")}
            words = {name: str(value) for name, value in (shared | own).items()}
            running.append(subprocess.Popen(command, env={**os.environ, **words}))
        while None in (states := [process.poll() for process in running]) and not any(states):
            time.sleep(0.05)
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
        failed = next((rank for rank, state in enumerate(states) if state), None)
        if failed is None:
            return 0
        if signal.SIGINT in passed_on and states[failed] in (130, -signal.SIGINT):
            return 130  # Ctrl-C before the first step: `run` has said so
        reported = min(Path(folder).glob("*.json"), key=lambda path: path.stat().st_mtime_ns, default=None)
        failed = int(reported.stem) if reported else failed
        reason = json.loads(reported.read_text())["message"]["message"] if reported else f"ended with {states[failed]}"
        text = f"error: process {failed} of {count} failed and ended all: {reason}"
        print(one_line(text), file=sys.stderr, flush=True)
        return 2 if reason.startswith("InputError") else 1


def shared_out(count: int, compute: Callable[[int], Result]) -> list[Result]:
    """[compute(0), ..., compute(count - 1)] in every process, each of which computes its own share."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    mine = [(number, compute(number)) for number in range(state.process_index, count, state.num_processes)]
    return [result for _, result in sorted(gather_object(mine), key=lambda pair: pair[0])]


def check_gpus() -> None:
    """InputError where this machine has more processes than GPUs: PyTorch would say "invalid device ordinal"."""
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 1)))
    gpus = torch.cuda.device_count() if not environment.is_on("ACCELERATE_USE_CPU") else 0
    if 0 < gpus < here:
        raise InputError(
            f"--num_processes={here}: {gpus} GPU{'s' if gpus > 1 else ''} on this machine; pass --num_processes {gpus}"
        )


def use_cpu() -> bool:
    """True if accelerate has to connect these processes on the CPU."""
    import torch  # only now: `start_missing` runs before PyTorch is imported, which takes seconds of every process

    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available()


def join(device: str | None) -> "PartialState":
    """This process's state among those of its launch, for inference and labels, after a check of the environment.

    device: --device; None: a GPU where there is one. Raises InputError for what `environment` refuses.
    """
    environment.settle_inference()
    from accelerate import PartialState

    if device != "cpu":
        check_gpus()
    state = PartialState(cpu=device == "cpu" or use_cpu(), timeout=PATIENCE)
    keep_process_group()
    return state


def keep_process_group() -> None:
    """Keep the default process group, if there is one, until this process ends. Call once the processes are connected.

    Otherwise the last reference may be that of DistributedDataParallel's C++ reducer, which Python deletes while
    holding the GIL. The group's destructor would then join gloo's worker thread, while that thread may wait for the
    GIL to free a tensor: a deadlock. Python's own object of a group releases the GIL before it deletes the group
    (IntrusivePtrNoGilDestructor in torch's init.cpp).
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        _process_groups.append(distributed.group.WORLD)
