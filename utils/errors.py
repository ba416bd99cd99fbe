"""What a user is told: errors that can be mended, and notes."""

import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """A flag, file or folder is not usable; the message is one line that names it and says what to do."""


def run(main: Callable[[], None]) -> None:
    """Call `main`; print an `InputError` as one line and exit with status 2 instead of a traceback.

    Every other exception keeps its traceback: it is a defect, and the traceback is the report.
    """
    try:
        main()
    except InputError as error:
        # a data-loader worker wraps the message in its own traceback; the last line is ours
        message = str(error).strip().splitlines()[-1].removeprefix("utils.errors.InputError: ")
        rank = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""
        print(f"{rank}error: {message}", file=sys.stderr, flush=True)
        sys.exit(2)


def note(text: str) -> None:
    """Print one line, from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", flush=True)
