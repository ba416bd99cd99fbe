"""Errors that the user can fix, warnings and notes, and the one way from an exception to an exit status."""

import errno
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TextIO

from utils import interrupt_once

# A module of these that is missing is a defect of ours, not a package that the user has to install.
OWN = (
    "utils", "dataloaders", "generators", "app", "miniworld", "benchmarks", "studies", "interop", "integrations",
)  # fmt: skip
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a used-up quota, a limit on the size of files
SHOWN = 20  # details of an error that are printed
_LOST = re.compile(r"gloo.* (?:by peer|error) \[([^]]+)\]:\d+(?:: ([^.]+))?")  # its address, and a reason
_UNPRINTABLE = re.compile(  # control characters; what reorders or hides text (Trojan Source); halves of surrogates
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ud800-\\udfff"
    "\\U000e0000-\\U000e007f]"
)


class InputError(ValueError):
    """A flag, file or folder is not usable; the message is one line that names it and says what to do.

    details: more lines, such as every file concerned; `run` prints some of them above the message.
    """

    def __init__(self, message: str, details: Sequence[str] = ()):
        # a data-loader worker wraps the message in its own traceback; the end is ours
        super().__init__(one_line(message.rpartition("utils.errors.InputError: ")[2].strip()))
        self.details = [one_line(detail) for detail in details]


def one_line(text: str) -> str:
    """`text` with line breaks, control characters and undecodable bytes of file names written as escapes."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def print_list(title: str, items: Sequence[str], file: TextIO | None = None) -> None:
    """Print a title and one indented line per item, which may quote names and contents of anyone's files."""
    print(title, *map(one_line, items), sep="\n  ", file=file or sys.stdout, flush=True)


def list_failed(title: str, failed: Sequence[str]) -> int:
    """The end of every command over a folder: name each file that failed, once; the exit status, 1 if any did.

    One bad file does not stop a folder, and what was made of the others is there; but a caller must see that it is not
    all. A score or a training over the rest would mean something else, so evaluation and training refuse instead. From
    the first process only.
    """
    if failed and os.environ.get("RANK", "0") == "0":
        print_list(f"error: {len(failed)} {title}:", failed, sys.stderr)
    return int(bool(failed))


def run(main: Callable[[], int | None]) -> None:  # noqa: C901  # one list of causes, read from top to bottom
    """The one way from exception to exit status, for every command: call `main` and exit with what it returns.

    An `InputError` is printed as one line, status 2; so are a package that is not installed and a full disk, wherever
    it was noticed. Ctrl-C: status 130. Every other exception keeps its traceback: it is a defect, and the traceback is
    the report.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold bytes that are no text
    interrupt_once()
    status: int | None = None
    before, threading.excepthook = threading.excepthook, _thread_ended
    try:
        status = main()
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        _close_bars()
        _say("interrupted", sys.stderr)
        sys.exit(130)
    except Exception as error:
        if "DataLoader worker" in str(error) and isinstance(error, RuntimeError):
            cause = str(error).strip().splitlines()[0]
            error = InputError(f"{cause} Most often memory has run out: lower --dataloader_num_workers")
        if isinstance(error, RuntimeError) and (lost := _LOST.search(str(error))):
            error = InputError(
                f"the process at {lost[1]} or the connection to it is lost ({lost[2] or 'closed'}); look at its own "
                "output, then start all again: the same command continues"
            )
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in OWN:
            error = InputError(f"the package {error.name} is not installed: pip install -r requirements.txt")
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            where = f"{error.filename}: " if error.filename else ""
            error = InputError(f"{where}no space left on device; free some and run the command again")
        _tell_launcher(error)
        _close_bars()
        if not isinstance(error, InputError):
            raise
        for detail in error.details[:SHOWN]:
            print(f"  {detail}", file=sys.stderr)
        if len(error.details) > SHOWN:
            print(f"  ... and {len(error.details) - SHOWN} more", file=sys.stderr)
        if not _supervised():  # else the line is printed once, as the last one, when all processes have ended
            rank = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""
            print(f"{rank}error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    finally:
        threading.excepthook = before
    if status:
        sys.exit(status)


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    """A full disk in a library's thread is one line: TensorBoard's writer raises it again in the main thread."""
    if isinstance(args.exc_value, OSError) and args.exc_value.errno in NO_SPACE:
        where = f"{args.exc_value.filename}: " if args.exc_value.filename else ""
        warn(f"{where}could not be written (no space left on device)")
    else:
        threading.__excepthook__(args)


def _close_bars() -> None:
    """End the progress bars' lines: the error must have a line of its own, and be the last one."""
    if "tqdm" in sys.modules:
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()


def _supervised() -> bool:
    """True in a process of `system.processes.supervise`; torchrun sets the second variable too."""
    return "TORCHELASTIC_ERROR_FILE" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ


def _tell_launcher(error: Exception) -> None:
    """Leave the error where torchrun and `system.processes.supervise` look for the reason, which they print last."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler  # slow to import

        get_error_handler().record_exception(error)


def warn(text: str) -> None:
    """Print one line to stderr, from the first process only."""
    _say(f"warning: {text}", sys.stderr)


def note(text: str) -> None:
    """Print one line, from the first process only."""
    _say(f"note: {text}", sys.stdout)


def _say(text: str, file: TextIO) -> None:
    if os.environ.get("RANK", "0") == "0":
        write = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print  # above a progress bar, not into it
        write(one_line(text), file=file)
        file.flush()
