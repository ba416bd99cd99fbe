"""One command line for every command: help that can be read, usage errors of one line, and flags from files."""

import argparse
import difflib
import io
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import InputError, note, warn

MAX_HELP_COLUMN, MAX_WIDTH = 34, 110
METAVARS: Mapping[object, str] = {int: "N", float: "X"}  # by type of flag
RECIPES = """@FILE reads flags from a file: one or several a line, quotes as in a shell, # starts a comment.
Flags after it win. Relative paths in it are relative to the current folder, as here."""
GAP = re.compile(r"(?:\s|\\\n|#.*)*")  # between the words of a recipe: white space, a continued line, a comment
RUN_BY = re.compile(r"#.*?(\w+\.py) @")  # the comment that shows how to run a recipe


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


class Word(str):
    """A word of a recipe. place: "FILE, line N: "."""

    place = ""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are InputErrors of one line, with the nearest flag or choice.

    Flags are never abbreviated. Commands end with `run(main)`, which prints the error and exits with status 2. A flag
    that means something only together with others states so with `only`. A word @FILE stands for the words of
    that file (`read_recipe`), and an error that they cause names the file and the line.

    given: the flags of the last command line, those of its recipes included, as typed: "--rank". several: flag of one
    value -> what to do where several words follow it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("epilog", RECIPES)
        super().__init__(*args, **kwargs)
        self._only: list[tuple[str, Callable[[argparse.Namespace], object], str, bool]] = []
        self._words: list[str] = []
        self._rest: list[str] = []
        self.given: frozenset[str] = frozenset()
        self.several: dict[str, str] = {}

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
        self._words = words = self._with_recipes(sys.argv[1:] if args is None else list(args))
        flags = [word.split("=")[0] for word in words if word.startswith("--") and word != "--"]
        self.given = frozenset(flags)
        unknown = [flag for flag in flags if flag not in self._option_string_actions]
        if unknown and self._subparsers is None:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        parsed, self._rest = super().parse_known_args(words, namespace)
        for name, value in vars(parsed).items():
            setattr(parsed, name, _plain(value))
        for flag, means, otherwise, refuse in self._only:
            if getattr(parsed, flag) == self.get_default(flag) or means(parsed):
                continue
            if refuse:
                raise InputError(f"--{flag} means nothing {otherwise}; leave it out")
            note(f"--{flag} means nothing {otherwise}")
        return parsed, self._rest

    def _with_recipes(self, words: list[str]) -> list[str]:
        """The command line with the words of each @FILE in its place."""
        end = words.index("--") if "--" in words else len(words)
        found: list[str] = []
        for word in words[:end]:
            if not word.startswith("@"):
                found.append(word)
                continue
            path = path_flag(word[1:])
            recipe, scripts = read_recipe(path)
            if scripts and self.prog.endswith(".py") and self.prog not in scripts:
                warn(f"{path} is a recipe for {', '.join(scripts)}, not for {self.prog}")
            found += recipe
        return found + words[end:]

    def error(self, message: str) -> NoReturn:
        text = f"{self._place(message)}{message}{self._suggestion(message)}"
        raise InputError(f"{text}; {self.prog} --help lists every flag")

    def _place(self, message: str) -> str:
        """ "FILE, line N: " where the word that argparse complains of comes from a recipe."""
        named = re.match(r"(?:argument ([^\s:]+):|unrecognized arguments: (\S+))", message)
        if not named:
            return ""
        flags = (named[1] or named[2]).split("/") if named[1] else [named[2].split("=")[0]]
        value = re.search(r"invalid .*?: '([^']*)'", message)
        words = [
            word
            for word, after in zip(self._words, [*self._words[1:], ""])
            if word.split("=")[0] in flags and (value is None or value[1] in (word.partition("=")[2], after))
        ]
        places = {getattr(word, "place", "") for word in words}
        return places.pop() if len(places) == 1 else ""

    def _suggestion(self, message: str) -> str:
        """For an unknown flag or choice, the known one that is nearest."""
        if unknown := re.search(r"unrecognized arguments: (--?[\w-]+)", message):
            return did_you_mean(unknown[1], list(self._option_string_actions))
        if self._rest and message.startswith("unrecognized arguments"):
            before = reversed(self._words[: self._words.index(self._rest[0])])
            flag = next((word.split("=")[0] for word in before if word.startswith("--")), "")
            if flag in self.several:
                return f"; {self.several[flag]}"
        if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            return did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        recipes = [word for word in self._words if word.endswith(".txt") and Path(word).is_file()]
        return f", did you mean @{recipes[0]}?" if recipes else ""


def _plain(value: Any) -> Any:
    """The value of a flag, with strings for words: nothing else in the program has to know of recipes."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Word) else value


def read_recipe(path: Path) -> tuple[list[str], list[str]]:
    """The words of a file of flags, and the scripts that its comments run with it (RUN_BY).

    Words are separated and quoted as in a shell. A # that begins a word starts a comment, and a backslash at the end
    of a line is passed over. Raises InputError where the file cannot be read, or reads another one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or "not UTF-8"
        hint = "" if path.exists() else nearest(path)
        raise InputError(f"@{path}: cannot be read ({reason}){hint}; @FILE reads flags from FILE") from None
    stream = io.StringIO(text)
    lexer = shlex.shlex(stream, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    while (start := GAP.match(text, stream.tell()).end()) < len(text):  # type: ignore[union-attr]
        stream.seek(start)
        place = f"{path}, line {text.count(chr(10), 0, start) + 1}"
        try:
            word = Word(lexer.get_token())
        except ValueError as error:
            raise InputError(f"{place}: {error}; close the quotation, or quote the character") from None
        if word.startswith("@"):
            raise InputError(f"{place}: {word}: a recipe cannot read another one; pass both: @{path} {word}")
        word.place = f"{place}: "
        words.append(word)
    return words, list(dict.fromkeys(RUN_BY.findall(text)))


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


def number(value: object) -> float:
    """A whole number as int, any other as float: "999" and 999, "0.4" and 0.4."""
    text = str(value)
    return int(text) if text.removeprefix("-").isdecimal() else float(text)


def expand(text: str) -> str:
    """A flag that is a path or a hub name: a leading ~ is the home folder."""
    return str(Path(text).expanduser()) if text.startswith("~") else text
