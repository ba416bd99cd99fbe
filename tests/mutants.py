"""Mutants: small faults put into the code one at a time, to find those that no test notices.

    python tests/mutants.py utils/kinds utils/objectives.py --number 60 --seed 0

Works on a copy of HEAD. The tests run once as they are, which records the lines that each of them runs; the record is
kept in .mutants/, and only what has changed is recorded again. A mutant then meets the tests that run its line. A line
that no test runs, such as one read at import, meets the tests of the files that name its module or run anything of it.
Files that name the module come first, then quick tests, up to --budget seconds of CPU.

A fault inside a function is put into a fork of a process that has collected all tests and made their shared data: the
function gets the faulty code, and nothing is imported again. All other faults, and those that survive this, are
written to the file and meet the tests in a fork that has imported the libraries, but nothing of this project. What
runs in other processes only (`fork` of tests/helpers.py, launchers) is not recorded.

Prints a line per mutant. Those in tests/mutants_equivalent.toml change nothing that a test could see, and are not run.
The exit status is 1 if fewer than 95 % of the others are killed.
"""

import argparse
import ast
import contextlib
import gc
import hashlib
import importlib
import itertools
import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / ".mutants" / "record.json"
SUBJECTS = ["utils", "dataloaders", "inference_sd_single.py", "inference_augunet.py", "evaluate.py"]
LIBRARIES = "torch numpy PIL.Image jinja2 hypothesis accelerate peft wandb tensorboard transformers.models.clip"
LIBRARIES += " diffusers.pipelines.stable_diffusion diffusers.models.unets.unet_2d_condition"
LEFT_OUT = ("annotation", "returns", "exc")  # types, and the words of errors
SWAPS: dict[type, tuple[type, ...]] = {
    **{ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE)},
    **{ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,)},
    **{ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,)},
    **{ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,)},
    **{ast.FloorDiv: (ast.Mult,), ast.Mod: (ast.Mult,), ast.Pow: (ast.Mult,)},
    **{ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,)},
}


@dataclass(frozen=True)
class Mutant:
    """`source` of the file at `path` with one fault, which changes the line `before` to `after`."""

    path: str
    line: int
    before: str
    after: str
    source: bytes
    span: range  # lines of the changed statement, of a block those of its head; empty where it runs at import


def mutants_of(root: Path, path: str) -> Iterator[Mutant]:
    """All mutants of a file. Text, annotations and what is raised stay as they are."""
    source = (root / path).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node, span in nodes_of(ast.parse(source)):
        first = starts[node.lineno - 1]
        begin, end = first + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        for text in faults_of(node):
            mutated = source[:begin] + text.encode() + source[end:]
            before, after = (whole[first:].split(b"\n")[0].decode().strip() for whole in (source, mutated))
            yield Mutant(path, node.lineno, before, after, mutated, span)


def nodes_of(node: ast.AST, span: range = range(0), in_function: bool = False) -> Iterator[tuple[Any, range]]:
    """Every expression and statement that may be changed, with its `span`."""
    if isinstance(node, ast.stmt) and in_function:
        body = getattr(node, "body", None)
        span = range(node.lineno, max(node.lineno + 1, body[0].lineno) if body else (node.end_lineno or 0) + 1)
    if isinstance(node, (ast.expr, ast.stmt)):
        yield node, span
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (isinstance(child, ast.JoinedStr) or field in LEFT_OUT):
                inside = isinstance(node, (ast.FunctionDef, ast.Lambda)) and field == "body"
                yield from nodes_of(child, span, in_function or inside)


def faults_of(node: Any) -> Iterable[str]:
    """Faults that may replace the node, as source text."""
    match node:
        case ast.Compare(left, [operator], right):
            return [ast.unparse(ast.Compare(left, [swap()], right)) for swap in SWAPS[type(operator)]]
        case ast.BinOp(ast.JoinedStr() | ast.Constant(str()), _, _) | ast.BinOp(
            _, _, ast.JoinedStr() | ast.Constant(str())
        ):
            return []  # text: nothing but a TypeError would come of it
        case ast.BinOp(left, operator, right):
            return [f"({ast.unparse(ast.BinOp(left, swap(), right))})" for swap in SWAPS.get(type(operator), ())]
        case ast.BoolOp(operator, values):
            return [f"({ast.unparse(ast.BoolOp(swap(), values))})" for swap in SWAPS[type(operator)]]
        case ast.AugAssign(target, operator, value):
            return [ast.unparse(ast.AugAssign(target, swap(), value)) for swap in SWAPS.get(type(operator), ())]
        case ast.UnaryOp(ast.Not(), operand):
            return [f"({ast.unparse(operand)})"]
        case ast.Constant(bool(value)):
            return [str(not value)]
        case ast.Constant(int(value)):
            return [str(value + 1), f"({value - 1})"]
        case ast.Constant(float(value)):
            return [repr(2 * value or 1.0)]
        case ast.Return(value) if value is not None and ast.unparse(value) != "None":
            return ["return None"]
        case ast.Expr(ast.Call()):
            return ["pass"]
    return []


class Recorder:
    """A pytest plugin: name of each test that passes -> its CPU seconds, and the lines it runs of each of `paths`."""

    def __init__(self, root: Path, paths: Iterable[str]):
        self.names, self.lines = {str(root / path): path for path in paths}, set()
        self.passed: dict[str, dict] = {}

    def step(self, frame, event, arg):
        if (path := self.names.get(frame.f_code.co_filename)) is None:
            return None
        self.lines.add((path, frame.f_lineno))
        return self.step

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        self.lines, begin = set(), cpu_seconds()
        threading.settrace(self.step)
        sys.settrace(self.step)
        yield
        sys.settrace(None)
        if item.nodeid in self.passed:
            lines: dict[str, list[int]] = {}
            for path, line in sorted(self.lines):
                lines.setdefault(path, []).append(line)
            self.passed[item.nodeid] = {"seconds": cpu_seconds() - begin, "lines": lines}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.passed[report.nodeid] = {}
        elif report.failed:
            self.passed.pop(report.nodeid, None)


def cpu_seconds() -> float:
    """Of this process and those that it waited for: unlike the clock's, much the same on a busy machine."""
    return sum(os.times()[:4])


class Chosen:
    """A pytest plugin: the tests `names` alone and in their order; `killer`: the first that fails."""

    def __init__(self, names: list[str]):
        self.rank, self.killer = {name: number for number, name in enumerate(names)}, ""

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self.rank]
        items.sort(key=lambda item: self.rank[item.nodeid])

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.killer = self.killer or report.nodeid


class Collected:
    """A pytest plugin: each of `mutants` that is inside a function meets its tests in a fork of the collected session.

    names: the tests for a mutant. report: called with a mutant and the test that fails on it, "" where none does.
    """

    def __init__(
        self, root: Path, recorded: dict[str, dict], mutants: list[Mutant], names: Callable, report: Callable
    ):
        self.root, self.recorded, self.mutants, self.names, self.report = root, recorded, mutants, names, report
        self.killer, self.sound = "", {}

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.killer = self.killer or report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        items = {item.nodeid: item for item in session.items}
        quick = sorted(self.recorded.keys() & items.keys(), key=lambda name: self.recorded[name]["seconds"])
        shared: dict[str, Any] = {}  # session fixture -> the quickest test that asks for it
        for name in quick:
            for fixture, definitions in items[name]._fixtureinfo.name2fixturedefs.items():
                if definitions[-1].scope == "session":
                    shared.setdefault(fixture, items[name])
        self.run(session, list(dict.fromkeys(shared.values())))
        functions = [one for one in gc.get_objects() if isinstance(one, types.FunctionType)]
        gc.freeze()  # which hides them from gc.get_objects
        for mutant in self.mutants:
            names = [name for name in self.names(mutant) if name in items]
            seconds = sum(self.recorded[name]["seconds"] for name in names)

            def faulty(mutant: Mutant = mutant, names: list[str] = names) -> str:
                put_into_functions(self.root, mutant, functions)
                return self.run(session, [items[name] for name in names])

            killer = in_fork(self.root, faulty, 20 + 2 * seconds) if names else ""
            if killer and killer not in self.sound:  # does it pass without the fault, in this order?
                again = [items[name] for name in names[: names.index(killer) + 1]]
                self.sound[killer] = in_fork(self.root, lambda again=again: self.run(session, again)) == ""
            self.report(mutant, "crash or timeout" if killer is None else killer if self.sound.get(killer) else "")
        return True

    def run(self, session, items: list[Any]) -> str:
        """The first of the tests that fails. The data that all tests share stay."""
        self.killer = ""
        for item, following in zip(items, [*items[1:], items[-1]] if items else []):
            session._setupstate.teardown_exact(item.parent)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.killer:
                break
        return self.killer


def put_into_functions(root: Path, mutant: Mutant, functions: list[types.FunctionType]) -> None:
    """Give those of the functions that are the module's their faulty code."""
    path = root / mutant.path
    old, new = (list(codes(compile(source, str(path), "exec"))) for source in (path.read_bytes(), mutant.source))
    if [code.co_qualname for code in old] != [code.co_qualname for code in new]:
        return  # a function less: it survives here, and is written to the file
    replaced = {(code.co_qualname, code.co_firstlineno): other for code, other in zip(old, new)}
    for one in functions:
        if one.__code__.co_filename == str(path):
            code = replaced.get((one.__code__.co_qualname, one.__code__.co_firstlineno), one.__code__)
            if len(code.co_freevars) == len(one.__code__.co_freevars):
                one.__code__ = code


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of all functions in `code`, from the outside in."""
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield one
            yield from codes(one)


def in_fork(root: Path, run: Callable[[], object], cpu: float | None = None) -> Any:
    """The result (JSON) of `run` in a fork whose current folder is `root`; None where it crashes or takes more than
    `cpu` seconds of CPU, so that a busy machine does not look like an endless loop. What waits has 30 times that.
    """
    result, output = (root.parent / f"{name}-{os.getpid()}" for name in ("result.json", "output.txt"))
    result.unlink(missing_ok=True)
    if not (child := os.fork()):
        os.setsid()
        if cpu is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + cpu),) * 2)
        os.chdir(root)
        sys.path[:0] = [str(root), str(root / "tests")]
        sys.modules["__main__"] = types.ModuleType("__main__")  # what a test spawns would import this file again
        written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        result.write_text(json.dumps(run()))
        os._exit(0)
    deadline = time.monotonic() + (24 * 3600 if cpu is None else 600 + 30 * cpu)
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the tests left running
    return json.loads(result.read_text()) if result.exists() else None


def run_pytest(root: Path, plugin: object, *words: str) -> int:
    fast = ["-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider", f"--basetemp={root.parent / 'tests'}"]
    return pytest.main([*words, *fast, "--tb=no"], [plugin])  # a traceback costs more than most tests


def record(root: Path, tests: list[str]) -> dict[str, dict]:
    """See Recorder. Of what RECORD has, only test files that have changed are run again, and all where code has."""
    subjects = [str(file.relative_to(root)) for file in python_files(root, SUBJECTS)]
    code = digest(root, subjects)
    kept = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if kept.get("code") != code:
        kept = {"code": code, "files": {}}
    found = [file for path in tests for file in python_files(root, [path]) if file.name.startswith("test_")]
    files = list(dict.fromkeys(str(file.relative_to(root)) for file in found))
    changed = [file for file in files if kept["files"].get(file, {}).get("digest") != digest(root, [file])]
    for folder, group in itertools.groupby(changed, os.path.dirname):  # a session's shared data are made once for each
        together = list(group)
        passed = in_fork(root, lambda together=together: recorded_in(root, subjects, together)) or {}
        for file in together:
            own = {name: one for name, one in passed.items() if name.split("::")[0] == file}
            kept["files"][file] = {"digest": digest(root, [file]), "tests": own}
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(kept))
        print(f"recorded {len(together)} files of {folder}: {len(passed)} tests", flush=True)
    return {name: one for file in files for name, one in kept["files"][file]["tests"].items()}


def recorded_in(root: Path, subjects: list[str], files: list[str]) -> dict[str, dict]:
    recorder = Recorder(root, subjects)
    run_pytest(root, recorder, *files)
    return recorder.passed


def python_files(root: Path, paths: Iterable[str]) -> list[Path]:
    """Files and those in folders."""
    found = ([root / path] if path.endswith(".py") else (root / path).rglob("*.py") for path in paths)
    return sorted({file for files in found for file in files})


def digest(root: Path, paths: Iterable[str]) -> str:
    return hashlib.sha256(b"".join((root / path).read_bytes() for path in paths)).hexdigest()


def tests_for(root: Path, mutant: Mutant, recorded: dict[str, dict], budget: float) -> list[str]:
    """The tests that the mutant meets, in their order: see the top of this file."""
    *package, name = mutant.path.removesuffix(".py").removesuffix("/__init__").split("/")
    module = rf"{'.'.join([*package, name])}\b|from {'.'.join(package)} import .*\b{name}\b"
    files = {test.split("::")[0] for test in recorded}
    own = {file for file in files if re.search(module, (root / file).read_text())}
    runs = {test: set(one["lines"].get(mutant.path, ())) for test, one in recorded.items()}
    chosen = [test for test in recorded if not runs[test].isdisjoint(mutant.span)]
    running = {test.split("::")[0] for test in recorded if runs[test]}
    chosen = chosen or [test for test in recorded if test.split("::")[0] in own | running]
    quickest: dict[str, float] = {}
    for test in chosen:
        file, seconds = test.split("::")[0], recorded[test]["seconds"]
        quickest[file] = min(seconds, quickest.get(file, seconds))

    def rank(test: str) -> tuple:
        file = test.split("::")[0]
        return file not in own, quickest[file], file, recorded[test]["seconds"]  # a file's fixtures are made once

    names = []
    for test in sorted(chosen, key=rank):
        if recorded[test]["seconds"] <= budget:
            names.append(test)
            budget -= recorded[test]["seconds"]
    return names


def meet(root: Path, mutant: Mutant, names: list[str], seconds: float, number: int) -> str:
    """The first of the tests `names`, which take so many `seconds`, that fails on the mutant; empty: it survives.

    number: another one each time.
    """

    def run() -> object:
        chosen = Chosen(names)
        status = run_pytest(root, chosen, "-x", *dict.fromkeys(name.split("::")[0] for name in names))
        return chosen.killer or ("" if status == 0 else f"pytest's status {status}")

    if not names:
        return ""
    path = root / mutant.path
    original, times = path.read_bytes(), path.stat()
    path.write_bytes(mutant.source)
    os.utime(path, (times.st_atime, times.st_mtime + 10 * (number + 1)))  # Python compares it with the compiled file's
    killer = in_fork(root, run, 60 + 2 * seconds)
    path.write_bytes(original)
    os.utime(path, (times.st_atime, times.st_mtime))
    return "crash or timeout" if killer is None else killer


def sample(root: Path, paths: list[str], number: int, seed: int) -> list[Mutant]:
    """`number` mutants of files, folders and lines (path:line), each in another line; all those of a given line."""
    lines = {tuple(path.split(":")) for path in paths if ":" in path}
    files = python_files(root, [path.split(":")[0] for path in paths])
    found = [mutant for file in files for mutant in mutants_of(root, str(file.relative_to(root)))]
    if lines:
        return [mutant for mutant in found if (mutant.path, str(mutant.line)) in lines]
    random.Random(seed).shuffle(found)
    first: dict[tuple[str, int], Mutant] = {}
    for mutant in found:
        first.setdefault((mutant.path, mutant.line), mutant)
    return list(first.values())[:number]


def equivalent_ones(root: Path) -> set[tuple[str, str, str]]:
    """(path, line before, after) of the mutants that are listed as equivalent. Leaves if a line is no longer there."""
    listed = tomllib.loads((root / "tests/mutants_equivalent.toml").read_text())["mutant"]
    for one in listed:
        if one["before"] not in map(str.strip, (root / one["path"]).read_text().splitlines()):
            sys.exit(f"tests/mutants_equivalent.toml: {one['path']} has no line {one['before']!r}; remove the entry")
    return {(one["path"], one["before"], one["after"]) for one in listed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("paths", nargs="*", default=SUBJECTS, help="where the faults go: files, folders, or lines as path:line")
    add("--number", type=int, default=60, help="mutants (default: 60)")
    add("--seed", type=int, default=0, help="seed of the sample (default: 0)")
    add("--tests", nargs="+", default=["tests"], help="test files and folders (default: tests)")
    add("--budget", type=float, default=60, help="CPU seconds of tests that a mutant meets (default: 60)")
    args = parser.parse_args()
    os.environ.update(WANDB_MODE="offline", HF_HUB_OFFLINE="1", WANDB_SILENT="true", OMP_NUM_THREADS="1")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as tests/conftest.py, which the libraries are imported before
    for name in LIBRARIES.split():
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "tree")
        root.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "x"], cwd=root, check=True, input=archive)
        equivalent, counts = equivalent_ones(root), {"killed": 0, "survived": 0, "equivalent": 0}
        recorded = record(root, args.tests)
        print(f"{len(recorded)} tests pass without a fault", flush=True)

        def names(mutant: Mutant) -> list[str]:
            return tests_for(root, mutant, recorded, args.budget)

        def report(mutant: Mutant, end: str, by: str) -> None:
            change = f"    - {mutant.before}\n    + {mutant.after}"
            os.write(terminal, f"{end:10}  {mutant.path}:{mutant.line}  {by}\n{change}\n".encode())

        def met(mutant: Mutant, killer: str) -> None:
            if killer:
                report(mutant, "killed", killer)
                ended.append([mutant.path, mutant.line, mutant.after])

        def meet_collected() -> list:
            plugin = Collected(root, recorded, [one for one in left if one.span], names, met)
            run_pytest(root, plugin, *dict.fromkeys(name.split("::")[0] for name in recorded))
            return ended

        terminal, ended, left = os.dup(1), [], []
        for mutant in sample(root, args.paths, args.number, args.seed):
            if (mutant.path, mutant.before, mutant.after) in equivalent:
                counts["equivalent"] += 1
            else:
                left.append(mutant)
        killed = in_fork(root, meet_collected) or []
        counts["killed"] = len(killed)
        left = [one for one in left if [one.path, one.line, one.after] not in killed]
        for number, mutant in enumerate(left):
            chosen = names(mutant)
            killer = meet(root, mutant, chosen, sum(recorded[one]["seconds"] for one in chosen), number)
            counts["killed" if killer else "survived"] += 1
            report(mutant, "killed" if killer else "survived", killer or f"{len(chosen)} tests")
    print(", ".join(f"{count} {end}" for end, count in counts.items()))
    sys.exit(counts["survived"] > 0.05 * (counts["killed"] + counts["survived"]))


if __name__ == "__main__":
    main()
