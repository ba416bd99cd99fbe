"""Speed and memory of training and inference on this GPU, in under ten minutes: `make bench-gpu`.

    python -m benchmarks.gpu                       # the same command continues where it ended
    python -m benchmarks.gpu --only ours           # without the released computation
    python -m benchmarks.gpu --cells "augunet" "inference batch 8"
    python -m benchmarks.gpu --device cpu --base tiny --resolution 32 --cells "batch 1 bf16"      # try it out

Each cell is one way to train or predict, with random weights made on the device; nothing is downloaded. The cells that
matter most come first, and each result is written as soon as it is there. Running out of memory is a result. Where
there is no GPU, the command prints the cells and the memory that each of them needs, counted (benchmarks/counted.py).

images/s and seconds are medians over --rounds, of several calls each, in which the host runs ahead as in training.
Where the released computation is measured too, the two take turns. TFLOP/s are the counted products of a call per
second, and of the ceiling: of a product of two large matrices in the same dtype, timed in the same rounds.
"""

import argparse
import contextlib
import gc
import io
import json
import math
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers.utils import logging

from benchmarks.cells import Cell, arguments, cells, counts, key_of, label, makers
from benchmarks.side_by_side import DTYPES, processor, seconds, spread
from utils.cli import Parser, above_zero, path_flag
from utils.errors import InputError, note, one_line, run
from utils.system import environment, provenance

PAPER = {"single": 20_000, "augunet": 50_000}  # steps of 4 images
RESERVE = 5  # seconds before the end in which no cell begins
FINISHED = ("done", "out of memory", "over its time", "refused")


def chosen(args: argparse.Namespace) -> list[Cell]:
    """The cells of --cells and --only. InputError where there are none."""
    every = [cell for cell in cells() if not args.cells or any(text in cell.name for text in args.cells)]
    if args.only == "ours":
        every = list(dict.fromkeys(replace(cell, released=False) for cell in every))
    if not every:
        raise InputError(f"--cells={' '.join(args.cells)}: in the name of no cell, such as {cells()[0].name}")
    return every


def parser() -> argparse.ArgumentParser:
    flags = Parser(prog="python -m benchmarks.gpu", description=__doc__)
    add = flags.add_argument
    add("--only", choices=["ours"], help="leave the released computation out")
    add("--cells", nargs="+", metavar="TEXT", help="only cells whose name contains one of these texts")
    add("--minutes", type=float, default=8.5, help="end before this time; the same command continues (8.5)")
    add("--cell_seconds", type=int, default=90, help="limit of a cell, with making its models and compiling (90)")
    add("--rounds", type=int, default=5, help="times that each is measured (5)")
    add("--output", type=path_flag, default=Path("output/bench-gpu.jsonl"), help="results (output/bench-gpu.jsonl)")
    add("--device", choices=["cuda", "cpu"], help="default: the GPU; without one the plan is printed")
    add(
        "--base", help="tiny, or a Stable Diffusion folder; left out: Stable Diffusion 1.5 and 2.1 with random weights"
    )
    add("--resolution", type=int, default=512, help="pixels (512)")
    add("--matrix", type=int, default=8192, help="rows and columns of the ceiling's matrices (8192)")
    return flags


# ------------------------------------------------------------------------------------------------- one cell


def measure(cell: Cell, args: argparse.Namespace, device: str) -> dict:
    """The result of a cell, whatever happens in it: "state" and, if that is "done", numbers of each variant."""
    begun, expired = time.monotonic(), []
    try:
        with limited(args.cell_seconds, expired):
            result = {"state": "done", **numbers(cell, args, device)}
    except InputError as error:
        result = {"state": "refused", "reason": str(error)}
    except Exception as error:  # the other cells are measured all the same
        result = {"state": "failed", "reason": f"{type(error).__name__}: {one_line(str(error))[:300]}"}
        if expired:  # a compiler wraps the TimeoutError in its own
            result = {"state": "over its time", "limit": round(args.cell_seconds)}
        elif out_of_memory(error):
            result = {"state": "out of memory"}
    if cell.compile != "off":
        torch.compiler.reset()
    tidy(device)
    return result | {"took": time.monotonic() - begun}


def numbers(cell: Cell, args: argparse.Namespace, device: str) -> dict:
    """Each variant's seconds, images/s, peak and TFLOP/s; ours and the released computation take turns."""
    environment.set_tf32(cell.dtype == "tf32")
    calls, peaks, many, given = {}, {}, {}, arguments(cell, args)
    for variant, make in makers(cell).items():
        held = torch.cuda.memory_allocated() if device == "cuda" else 0
        try:
            calls[variant] = call = quietly(make(given, device))
            seconds(call, device)  # not timed: a compiler may work in it
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            once = seconds(lambda c=call: (c(), c()), device) / 2
            peaks[variant] = (torch.cuda.max_memory_allocated() - held) / 1e9 if device == "cuda" else None
            many[variant] = max(1, min(4, round(0.5 / once))) if cell.work == "training" else 1
        except Exception as error:
            if variant == "ours" or not out_of_memory(error):
                raise
            calls.pop(variant, None)
    tidy(device)
    matrices = {
        v: matrix(args, device, DTYPES.get(cell.dtype if v == "ours" else "fp32", torch.float32)) for v in calls
    }
    times: dict[str, list[float]] = {variant: [] for variant in calls}
    ceilings: dict[str, list[float]] = {variant: [] for variant in calls}
    for _ in range(args.rounds):
        for variant, call in calls.items():
            square, repeat = matrices[variant], many[variant]
            seconds(lambda m=square: m @ m, device)
            ceilings[variant].append(
                6 * len(square) ** 3 / seconds(lambda m=square: [m @ m for _ in range(3)], device)
            )
            times[variant].append(seconds(lambda c=call, n=repeat: [c() for _ in range(n)], device) / repeat)
    images = given.images if cell.work == "inference" else cell.batch
    found: dict = {"released": None} if cell.released else {}
    for variant in calls:
        work = (counts(cell, variant, args) or {}).get("tflop", math.nan) * images / cell.batch
        middle, ceiling = statistics.median(times[variant]), statistics.median(ceilings[variant])
        found[variant] = {
            "seconds": spread(times[variant]),
            "images_per_second": images / middle,
            "peak_gb": peaks[variant],
            "tflop_per_second": work / middle,
            "of_ceiling": 1e12 * work / middle / ceiling,
        }
    if len(calls) == 2:
        found["speedup"] = spread([a / b for a, b in zip(times["released"], times["ours"])])
    if cell.work == "training":
        found["loss"] = loss = calls["ours"]()
        found["finite"] = math.isfinite(loss)
    return found


def out_of_memory(error: Exception) -> bool:
    """True if the device is full; cuDNN and cuBLAS have their own words for it."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def quietly(call: Callable[[], object]) -> Callable[[], object]:
    """`call` without its progress bars."""

    def silent() -> object:
        with contextlib.redirect_stderr(io.StringIO()):
            return call()

    return silent


def matrix(args: argparse.Namespace, device: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(args.matrix, args.matrix, device=device, dtype=dtype)


@contextlib.contextmanager
def limited(limit: float, expired: list) -> Iterator[None]:
    """TimeoutError, and an entry in `expired`, after `limit` seconds, where the system has alarms."""

    def stop(*_: object) -> None:
        expired.append(limit)
        raise TimeoutError

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tidy(device: str) -> None:
    """Give back the memory of what has ended."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def plan(args: argparse.Namespace) -> str:
    """The cells in their order, with what was counted of them. Markdown."""
    lines = [f"| {' | '.join(['cell', 'kernels', 'host waits', 'TFLOP', 'GB at peak, counted'])} |", "|---" * 5 + "|"]
    for cell in chosen(args):
        for variant in makers(cell):
            known = counts(cell, variant, args)
            row = ["not counted"] * 4
            if known:
                row = [f"{known['kernels']:,}", f"{known['host_waits']}", f"{known['tflop']:.3g}"]
                row += [f"{known['peak_gb']:.3g}" + (" without compiling" if cell.compile != "off" else "")]
            lines.append(f"| {label(cell, variant)} | {' | '.join(row)} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------- results


def read_results(path: Path, where: dict) -> dict[str, dict]:
    """Name of the cell -> its last result on this machine, with this PyTorch and base. InputError: another file."""
    found: dict[str, dict] = {}
    if path.is_file():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                record = json.loads(line)
                if record["where"] == where:
                    found[key_of(Cell(**record["cell"]))] = record
            except (ValueError, KeyError, TypeError) as error:
                why = f"line {number} is not a result ({type(error).__name__}: {error})"
                raise InputError(f"--output: {path}: {why}; name another file") from None
    return found


HEAD = ["cell", "images/s", "seconds", "peak GB", "counted GB", "TFLOP/s", "of the ceiling", "the paper's steps, s"]


def table(results: dict[str, dict], args: argparse.Namespace) -> str:
    """The measurements, in the cells' order. Markdown."""
    lines = [f"| {' | '.join(HEAD)} | released / ours |", "|---" * (len(HEAD) + 1) + "|"]
    for cell in chosen(args):
        result = results.get(key_of(cell))
        if result is None or result["state"] == "begun":
            continue
        for variant in makers(cell):
            known, state = (counts(cell, variant, args) or {}).get("peak_gb"), result["state"]
            counted = "" if known is None else f"{known:.3g}"
            if state == "done" and result[variant] is None:
                state = "out of memory"
            if state != "done":
                why = f"{state}: {result['reason']}" if "reason" in result else state
                lines.append(f"| {label(cell, variant)} | {why} | | | {counted} | | | | |")
                continue
            row = result[variant]
            middle = row["seconds"]
            paper = cell.work == "training" and cell.batch == 4
            line = [label(cell, variant), f"{row['images_per_second']:.3g}"]
            line += ["{median:.3g} [{min:.3g}, {max:.3g}]".format(**middle)]
            line += ["" if row["peak_gb"] is None else f"{row['peak_gb']:.3g}", counted]
            line += [f"{row['tflop_per_second']:.3g}", f"{100 * row['of_ceiling']:.0f} %"]
            line += [f"{PAPER[cell.method] * middle['median']:,.0f}*" if paper else ""]
            ratio = result.get("speedup") if variant == "ours" else None
            line += ["{median:.2f} [{min:.2f}, {max:.2f}]".format(**ratio) if ratio else ""]
            if variant == "ours" and not result.get("finite", True):
                line[0] += " (its loss was not finite)"
            lines.append(f"| {' | '.join(line)} |")
    lines.append("")
    lines.append(
        "* extrapolated from the steps that were timed: 20,000 of 4 images (augunet: 50,000), without reading,"
    )
    lines.append(
        "  validation and checkpoints. Counted GB: without a compiler's changes and the CUDA context. In fp32,"
    )
    lines.append("  convolutions are in TF32, as is PyTorch's default.")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    above_zero(args, ["rounds", "cell_seconds", "resolution", "matrix"])
    todo = chosen(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device=cuda: this PyTorch has no GPU; leave the flag out for the plan, or pass cpu")
    if args.device is None and not torch.cuda.is_available():
        print(plan(args))
        note(f"no GPU here, so nothing was measured: above are the {len(todo)} cells that this command runs on one")
        return 0
    device = args.device or "cuda"
    logging.set_verbosity_error()  # a warning for each network that is moved in half precision
    PartialState._reset_state()
    PartialState(cpu=device == "cpu")
    where = {"device": torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, "
             f"{torch.get_num_threads()} threads", "torch": torch.__version__, "base": args.base,
             "resolution": args.resolution, **provenance.git_state()}  # fmt: skip
    results = read_results(args.output, where)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    left = [cell for cell in todo if results.get(key_of(cell), {}).get("state") not in FINISHED]
    left.sort(key=lambda cell: key_of(cell) in results)  # one that ended the process goes last
    if done := len(todo) - len(left):
        note(f"{args.output}: {done} of {len(todo)} cells are finished")
    end = time.monotonic() + 60 * args.minutes
    with args.output.open("a") as file, tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # the cells' runs and images
        for number, cell in enumerate(left):
            if end - time.monotonic() < RESERVE:
                note(f"--minutes: {len(left) - number} of {len(todo)} cells are left; the same command continues")
                break
            record = {"where": where, "cell": asdict(cell), "state": "begun"}
            file.write(json.dumps(record) + "\n")
            file.flush()
            allowed = argparse.Namespace(**vars(args) | {
                "cell_seconds": min(args.cell_seconds, end - time.monotonic())})  # fmt: skip
            results[key_of(cell)] = record = record | measure(cell, allowed, device)
            if record["state"] == "over its time" and allowed.cell_seconds < args.cell_seconds:
                record["state"] = "begun"  # cut off by --minutes: the next run measures it
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(f"{key_of(cell)}: {record['state']}, {record['took']:.0f} s", flush=True)
        tempfile.tempdir = None
    print(table(results, args))
    print(f"{where['device']}, torch {where['torch']}")
    return int(any(results.get(key_of(cell), {}).get("state") == "failed" for cell in todo))


if __name__ == "__main__":
    run(main)
