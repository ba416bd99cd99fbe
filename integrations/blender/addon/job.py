"""A command that runs in parallel to Blender: its progress, its end, and stopping it. Does not import bpy."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

LEFT_OUT = ("PYTHONPATH", "PYTHONHOME")  # Blender's, which another Python must not see


class Job:
    """Run `words` as a separate process in the folder `cwd`, with its output in the file `log`.

    count: done so far, of `total`, where the output does not say it; None: percentages in the output are the progress.
    """

    def __init__(self, words: list[str], cwd: Path, log: Path, count: Callable[[], int] | None = None, total: int = 1):
        env = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}
        self.log, self.count, self.total, self.cancelled = log, count, total, False
        group = {"start_new_session": True} if os.name == "posix" else {}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **group
            )

    def lines(self) -> list[str]:
        """The output so far without empty lines; a progress bar's states are lines."""
        text = self.log.read_text(errors="replace")
        return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]

    def progress(self) -> tuple[float, str]:
        """Done, in [0,1], and what it is doing."""
        last = (self.lines() or ["starting"])[-1]
        if self.count:
            done = self.count()
            return min(done / self.total, 1), f"{done} of {self.total}"
        percent = re.search(r"(\d+)%\|", last)
        return int(percent[1]) / 100 if percent else 0, last.partition(":")[0]

    def ended(self) -> bool:
        return self.process.poll() is not None

    def error(self) -> str | None:
        """Why it failed, in one line; None where it did not."""
        if self.cancelled:
            return "cancelled"
        if not self.process.returncode:
            return None
        said = [line for line in self.lines() if line.startswith("error: ")]
        return said[-1].removeprefix("error: ") if said else f"it failed; its output: {self.log}"

    def cancel(self) -> None:
        """Stop it and what it started."""
        if self.ended():
            return
        self.cancelled = True
        if os.name == "posix":
            os.killpg(self.process.pid, signal.SIGTERM)
        else:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.process.pid)], check=False)
        self.process.wait()
