"""Clean stops: a first signal is remembered until the loop can stop, a second one ends the process immediately."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

import psutil

from utils import ECHO

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAUNCHERS = ("accelerate", "torchrun", "torch.distributed.run")
_first: tuple[str, float] | None = None  # name and time of the first signal
_before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}


def listen() -> None:
    """Catch SIGTERM, SIGINT and SIGUSR1 from now on; the death of a launcher counts as SIGTERM."""
    global _first
    _first = None
    echo = 0.0
    if _has_launcher():
        echo = ECHO
        follow_parent()

    def handle(number: int, _frame: object) -> None:
        global _first
        name, now = signal.Signals(number).name, time.monotonic()
        if _first is None:
            _first = (name, now)  # os.write: printing is not safe inside a handler
            os.write(2, f"\n{name}: finishing this step, then stopping; a second signal stops immediately\n".encode())
        elif now - _first[1] > echo:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in STOPPING:
        before = signal.signal(number, handle)
        _before.setdefault(number, before)


def stop_requested() -> str | None:
    """Name of the signal that asked this process to stop, if one has."""
    return _first and _first[0]


def forget() -> None:
    """Restore the handlers from before `listen`."""
    while _before:
        signal.signal(*_before.popitem())


def ignore(_worker: int = 0) -> None:
    """For data-loader workers: the process that started them stops them."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def follow_parent() -> None:
    """Have the system send SIGTERM to this process when its parent dies (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _has_launcher() -> bool:
    if "RANK" in os.environ:
        return True
    try:
        words = " ".join(psutil.Process().parent().cmdline())
    except (psutil.Error, AttributeError):
        return False
    return any(name in words for name in LAUNCHERS)
