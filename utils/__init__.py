"""Code that all scripts share. A line belongs here if changing it should change every run."""

import os
import signal
import sys
import threading
import time

__version__ = "0.2.0"
ECHO = 3.0  # seconds: Ctrl-C and schedulers signal both the launcher and the process, and the launcher forwards it


def interrupt_once() -> None:
    """Let the first Ctrl-C raise KeyboardInterrupt as ever, and let its echo pass: the terminal signals all processes,
    and a launcher forwards the signal to those that have it already. One more, after ECHO seconds, ends immediately.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a program may have its own, or ignore it
    if usual and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_number: int, _frame: object) -> None:
    first = time.monotonic()
    signal.signal(signal.SIGINT, lambda *_: os._exit(130) if time.monotonic() - first > ECHO else None)
    raise KeyboardInterrupt


def _end_quietly(kind, error, trace, otherwise=sys.excepthook):  # type: ignore[no-untyped-def]
    """Ctrl-C while a command imports what it needs, before `utils.errors.run` can catch it: one line. Python itself
    then ends with status 130.
    """
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        otherwise(kind, error, trace)


# Only in this repository's commands: another program's interrupt keeps its traceback. The name is -m while Python is
# looking for the module.
_command, _root = "".join(sys.argv[:1]), os.path.realpath(f"{__path__[0]}/..")
if _command == "-m" or os.path.realpath(_command).startswith(_root + os.sep):
    sys.excepthook = _end_quietly
    interrupt_once()

# OpenMP's threads wait for their next piece of work by spinning. Where another program needs the cores, that takes the
# time from the very thread that is waited for: several times the seconds. "passive" lets them sleep, with the same
# results. The libraries read it once, when PyTorch loads them, and so it is set here, which every command imports
# first. OMP_WAIT_POLICY is the standard's variable; the others are those of GNU's and of Intel's and LLVM's library.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "passive"
