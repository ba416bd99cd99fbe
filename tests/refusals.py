"""How a bad input must end: soon, in one line that names the file or flag, with status 2."""

import contextlib
import io
import re
import signal
from pathlib import Path

from helpers import ROOT, SCRIPTS, run_here

from dataloaders.diode import Diode
from utils.errors import run
from utils.intrinsics import DEPTH, NORMAL

SECONDS = 60  # CPU seconds for one case, and ten times as many on the clock, where it waits
SCRIPT = next(iter(SCRIPTS))
NEEDED = ["--pretrained_model_name_or_path", str(ROOT / "miniworld" / "mini-sd")]
NEEDED += ["--train_data_dir", str(ROOT / "docs"), "--pseudo_root", str(ROOT / "recipes"), "--output_dir"]  # any


class Hang(BaseException):
    """Not an Exception: nothing on the way may catch it."""


@contextlib.contextmanager
def time_limit():
    def stop(*_):
        raise Hang(f"still busy after {SECONDS} s")

    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, stop) for number in timers}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
    try:
        yield
    finally:
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def outcome(call) -> tuple[int, str]:
    """Exit status and stderr of a call under `run`; anything but an error meant for the user comes through."""
    stderr, status = io.StringIO(), 0
    with time_limit(), contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            run(call)
        except SystemExit as end:
            status = end.code
    return status, stderr.getvalue()


def refused(call, *expected: str) -> str:
    """`call` ends with status 2 and one error line, the last, in which every regular expression is found."""
    status, stderr = outcome(call)
    lines = [line for line in stderr.splitlines() if re.match(r"(.*: )?error: ", line)]
    assert status == 2 and len(lines) == 1, f"status {status}, {stderr[-500:]}"
    last = stderr.rstrip("\n").split("\n")[-1]
    assert last == lines[0] and "Traceback" not in stderr and len(last) < 1500
    for pattern in expected:
        assert re.search(pattern, last), f"{pattern!r} is not in {last!r}"
    return last


def main_refused(script: str, words: list, *expected: str) -> str:
    """The same of a script's main, with these words for arguments."""
    return refused(lambda: run_here(script, [str(word) for word in words]), *expected)


def normals(root: Path, **options) -> Diode:
    return Diode(NORMAL, root / "normals", root / "pseudo/normal", "train", resolution=32, **options)


def depths(root: Path, **options) -> Diode:
    return Diode(DEPTH, root / "depths", root / "pseudo/depth", "train", resolution=32, **options)


def put(path: Path, content: bytes | None) -> None:
    """Replace a file; None: by nothing."""
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
