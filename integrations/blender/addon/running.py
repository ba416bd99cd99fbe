"""The running job, one at a time, polled by a timer so that Blender stays responsive."""

import time
from collections.abc import Callable

import bpy

from .job import Job

INTERVAL = 0.25  # seconds between two looks


class Running:
    """job: now, or None. message, done: what the panel shows, done in [0,1]. failed: the last job did not succeed."""

    job: Job | None = None
    finish: Callable[[], str] | None = None
    message = ""
    done = 0.0
    failed = False


def begin(job: Job, finish: Callable[[], str]) -> None:
    """Poll `job`; when it has succeeded, `finish` reads its files and returns a message about them."""
    Running.job, Running.finish, Running.message, Running.failed = job, finish, "starting", False
    bpy.app.timers.register(look, first_interval=INTERVAL)


def look() -> float | None:
    """Seconds until the next look, or None at the end, as Blender's timers want it."""
    job = Running.job
    if job is None:
        return None
    if not job.ended():
        Running.done, Running.message = job.progress()
        redraw()
        return INTERVAL
    Running.job, why = None, job.error()
    if why is None:
        try:
            Running.message = Running.finish()
        except (RuntimeError, ValueError, OSError) as error:
            why = str(error)
    Running.failed, Running.message = why is not None, why or Running.message
    redraw()
    return None


def wait() -> None:
    """Wait until the job has ended: for scripts, and Blender without a window, whose timers do not run."""
    while look() is not None:
        time.sleep(INTERVAL)


def stop() -> None:
    if Running.job is not None:
        Running.job.cancel()


def redraw() -> None:
    for window in getattr(bpy.context.window_manager, "windows", ()):
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                area.tag_redraw()
