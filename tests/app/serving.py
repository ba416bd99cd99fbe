"""Starts the app as a user does, and stops it."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

STARTING = 240  # seconds, on a busy machine


@dataclass
class Served:
    """The page's address, the process that serves it, and the folder that its temporary files go to."""

    address: str
    process: subprocess.Popen
    temporary: Path

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def start(folder: Path, *words: object) -> Served:
    """`python -m app`, run in `folder` with only these flags and a CPU. Its temporary files go to a folder below."""
    temporary = folder / "temporary"
    temporary.mkdir()
    env = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "app", "--device", "cpu", *words]
    process = subprocess.Popen(
        [*map(str, command)], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    timer = threading.Timer(STARTING, process.kill)
    timer.start()
    said = ""
    for line in process.stdout:
        said += line
        if found := re.match(r"next: open (http://127\.0\.0\.1:\d+)/", line):
            timer.cancel()
            threading.Thread(target=process.stdout.read, daemon=True).start()  # so that the pipe is never full
            return Served(found[1], process, temporary)
    raise AssertionError(f"the app did not start:\n{said}")
