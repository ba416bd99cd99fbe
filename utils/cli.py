"""One command line for every command: help that can be read, and usage errors of one line."""

import argparse
import difflib
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import InputError, note

MAX_HELP_COLUMN, MAX_WIDTH = 34, 110
METAVARS: Mapping[object, str] = {int: "N", float: "X"}  # by type of flag


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep the docstring's layout, put flags in one column, and show a default only if it is informative."""

    def __init__(self, prog: str):
        width = min(shutil.get_terminal_size().columns, MAX_WIDTH) - 2
        super().__init__(prog, max_help_position=MAX_HELP_COLUMN, width=width)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return METAVARS.get(action.type, "PATH" if action.type in (path_flag, expand) else "TEXT")

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = action.default in (None, False, (), [], "", argparse.SUPPRESS) or "default" in text
        return text if silent or not action.option_strings else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are InputErrors of one line, with the nearest flag or choice.

    Flags are never abbreviated. Commands end with `run(main)`, which prints the error and exits with status 2. A flag
    that means something only together with others states so with `only`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._only: list[tuple[str, Callable[[argparse.Namespace], object], str, bool]] = []

    def only(
        self, flags: str, means: Callable[[argparse.Namespace], object], otherwise: str, refuse: bool = True
    ) -> None:
        """These flags, separated by spaces, are read only where `means(args)` holds. Elsewhere another value than the
        default is an error; without `refuse`, for flags that the released scripts accept, a note.

        otherwise: where they mean nothing, such as "with --bootstrap 0".
        """
        self._only += [(flag, means, otherwise, refuse) for flag in flags.split()]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but a flag that is not known is reported before one that is missing."""
        words = sys.argv[1:] if args is None else list(args)
        flags = [word.split("=")[0] for word in words if word.startswith("--") and word != "--"]
        unknown = [flag for flag in flags if flag not in self._option_string_actions]
        if unknown and self._subparsers is None:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        parsed, rest = super().parse_known_args(args, namespace)
        for flag, means, otherwise, refuse in self._only:
            if getattr(parsed, flag) == self.get_default(flag) or means(parsed):
                continue
            if refuse:
                raise InputError(f"--{flag} means nothing {otherwise}; leave it out")
            note(f"--{flag} means nothing {otherwise}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}{self._suggestion(message)}; {self.prog} --help lists every flag")

    def _suggestion(self, message: str) -> str:
        """For an unknown flag or choice, the known one that is nearest."""
        if unknown := re.search(r"unrecognized arguments: (--?[\w-]+)", message):
            return did_you_mean(unknown[1], list(self._option_string_actions))
        if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            return did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        return ""


def above_zero(args: argparse.Namespace, names: Sequence[str]) -> None:
    """InputError for the first of these flags that is less than 1."""
    for name in names:
        if getattr(args, name) < 1:
            raise InputError(f"--{name}={getattr(args, name)}: must be at least 1")


def did_you_mean(word: str, known: list[str]) -> str:
    """ ", did you mean ...?" with the nearest of `known`, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f", did you mean {found[0]}?" if found else ""


def nearest(path: str | Path) -> str:
    """For a path that does not exist: ", did you mean ...?" with the one on disk whose name is nearest in its first
    wrong part; else nothing.
    """
    typed = Path(path)
    here = next((parent for parent in typed.parents if parent.is_dir()), None)
    if here is None:
        return ""
    wrong, *rest = typed.relative_to(here).parts
    try:
        names = [entry.name for entry in here.iterdir() if entry.joinpath(*rest).exists()]
    except OSError:
        return ""
    found = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    return f", did you mean {here.joinpath(found[0], *rest)}?" if found else ""


def path_flag(text: str) -> Path:
    """A path flag's value; a ~ that the shell has not expanded is the home folder."""
    return Path(text).expanduser()


def expand(text: str) -> str:
    """A flag that is a path or a hub name: a leading ~ is the home folder."""
    return str(Path(text).expanduser()) if text.startswith("~") else text
