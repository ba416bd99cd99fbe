"""Several processes: started here where there is no GPU, because accelerate's launcher does not, and joined."""

import ipaddress
import json
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil

from utils.errors import InputError, one_line
from utils.system import atomic, environment, signals

if TYPE_CHECKING:
    from accelerate import PartialState

PATIENCE = timedelta(hours=6)  # processes wait for each other's shares, such as a latent cache's; NCCL's own: 10 min
APPEARS = 10  # seconds until a file is visible on all hosts: network file systems cache
LOST_HOST = 30  # seconds without an answer after which another host is taken for lost
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
        InputError: N processes cannot be shared out evenly among --num_machines.
    """
    if "WORLD_SIZE" in os.environ or "MASTER_ADDR" not in os.environ:
        return
    above = environment.launcher()
    if above is None:
        return
    hosts, count = (number_of(above, name, 1) for name in ("num_machines", "num_processes"))
    if count % hosts:
        raise InputError(f"--num_processes={count}: not a multiple of --num_machines={hosts}; it counts those of all")
    if count > 1:
        first = number_of(above, "machine_rank", 0) * count // hosts
        sys.exit(supervise([sys.executable, *sys.argv], count // hosts, first, count))


def number_of(above: environment.Launcher, name: str, default: int) -> int:
    """A number among the launcher's flags or, where they have none, in its file."""
    if flag := environment.option(above.words, f"--{name}"):
        return int(flag)
    if above.file is None:
        return default
    import yaml  # only where there is a file to read

    return int(yaml.safe_load(above.file.read_text()).get(name) or default)  # of JSON too, which is YAML


def supervise(command: list[str], count: int, first: int = 0, total: int | None = None) -> int:
    """Run `command` in `count` connected processes and forward signals to them; returns their common exit status.

    When one fails, the others are ended immediately, and its error is printed last: theirs are only consequences.
    first, total: rank of the first one, and the processes of all hosts, which meet at the environment's MASTER_ADDR.
    """
    total = total or count
    shared: dict[str, object] = {"WORLD_SIZE": total, "LOCAL_WORLD_SIZE": count}
    if total == count:
        with socket.create_server(("127.0.0.1", 0)) as free:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
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
            own = {"RANK": first + rank, "LOCAL_RANK": rank, "TORCHELASTIC_ERROR_FILE": Path(folder, f"{rank}.json")}
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
        text = f"error: process {first + failed} of {total} failed and ended all: {reason}"
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


def spans_hosts() -> bool:
    """True if this process is one of several on different hosts."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    return count > int(os.environ.get("LOCAL_WORLD_SIZE") or count)


def check_hosts() -> None:
    """Before processes on several hosts connect: let gloo listen at the interface through which the first host is
    reached, unless GLOO_SOCKET_IFNAME names one. By itself it listens where this host's own name resolves to, which on
    Debian is 127.0.1.1: no other host can connect there. accelerate uses gloo next to NCCL, too.

    Raises:
        InputError: the address leads to no host, or the first host itself has it as a loopback address.
    """
    if not spans_hosts() or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    address = os.environ["MASTER_ADDR"]
    try:
        family, _, _, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # of UDP: chooses the interface, sends nothing
            own = probe.getsockname()[0]
    except OSError as error:
        raise InputError(f"{address}: no way to this host, the first one ({error.strerror}); check its name") from None
    named = (
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(each.address.partition("%")[0] == own for each in addresses)
    )
    if ipaddress.ip_address(own).is_loopback or not (name := next(named, "")):
        raise InputError(
            f"{address}: the first host, which other hosts cannot reach at {own}; pass its address in the network "
            "(--main_process_ip, --rdzv_endpoint)"
        )
    os.environ["GLOO_SOCKET_IFNAME"] = name


def check_shared(folder: Path) -> None:
    """InputError where `folder` is not the same one on every host: checkpoints and maps would be on one of them only,
    and a resumed run would not find its checkpoint on the others. Call in every process, once it is there.
    """
    if not spans_hosts():
        return
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object

    state = PartialState()
    token = folder / broadcast_object_list([f".shared-{secrets.token_hex(8)}"])[0]
    if state.is_main_process:
        atomic.save_bytes(token, b"")
    state.wait_for_everyone()
    deadline = time.monotonic() + APPEARS
    while not token.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    found = gather_object([(socket.gethostname(), token.exists())])
    if state.is_main_process:
        token.unlink()
    if lacking := sorted({name for name, there in found if not there}):
        raise InputError(
            f"--output_dir: {folder} is not one folder for all hosts (what {found[0][0]} writes does not appear on "
            f"{', '.join(lacking)}); name a folder on a disk that they share"
        )


def join(device: str | None) -> "PartialState":
    """This process's state among those of its launch, for inference and labels, after a check of the environment.

    device: --device; None: a GPU where there is one. Raises InputError for what `environment` refuses.
    """
    environment.settle_inference()
    from accelerate import PartialState

    if device != "cpu":
        check_gpus()
    check_hosts()
    state = PartialState(cpu=device == "cpu" or use_cpu(), timeout=PATIENCE)
    keep_process_group()
    return state


def notice_lost_hosts() -> None:
    """Have the system close a connection to another host that has not answered for LOST_HOST seconds, which ends this
    process too (`utils.errors.run`). Otherwise it would wait until PATIENCE for a host whose power or network fails.
    """
    if sys.platform != "linux":
        return
    for handle in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        try:
            if not stat.S_ISSOCK(os.fstat(handle).st_mode):
                continue
            connection = socket.socket(fileno=os.dup(handle))
        except OSError:  # closed by now
            continue
        with suppress(OSError), connection:  # OSError: not connected
            if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
                continue
            if connection.getpeername()[0] == connection.getsockname()[0]:  # a process on this host
                continue
            # these are options of the connection, whichever handle sets them
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, LOST_HOST // 3)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, LOST_HOST // 6)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_HOST * 1000)


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
        if spans_hosts():
            notice_lost_hosts()
