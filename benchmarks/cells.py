"""The cells of the GPU benchmark: ways to train or predict, and what each of them needs, counted."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache

from benchmarks import counted, inference, train_step
from utils.paths import ROOT

COUNTS = ROOT / "benchmarks" / "results" / "memory.json"  # of full-size cells, by `python -m benchmarks.memory`


@dataclass(frozen=True)
class Cell:
    """One way to compute. released: the released computation takes turns with ours."""

    work: str = "training"  # or inference
    method: str = "single"
    batch: int = 4
    dtype: str = "bf16"
    compile: str = "off"
    gradient_checkpointing: bool = False
    lora_targets: str = "attention"
    base_precision: str | None = None
    released: bool = False

    @property
    def name(self) -> str:
        """As the table has it, without the released computation."""
        words = [self.work, *([self.method] if self.work == "training" else []), f"batch {self.batch}", self.dtype]
        words += [f"compiled {self.compile}"] if self.compile != "off" else []
        words += ["checkpointing"] if self.gradient_checkpointing else []
        words += [self.base_precision] if self.base_precision else []
        words += ["all layers"] if self.lora_targets == "all" else []
        return " ".join(words)


def cells() -> list[Cell]:
    """Every cell, the most important first: the goals, then one change at a time, then the other batches."""
    predict = {"work": "inference"}
    first = [
        Cell(released=True),
        Cell(batch=16),
        Cell(**predict, batch=8, released=True),
        Cell(gradient_checkpointing=True),
        Cell(method="augunet", released=True),
        Cell(batch=1, released=True),
        Cell(**predict, batch=32),
        Cell(**predict, batch=1, released=True),
        Cell(dtype="fp16"),
        Cell(dtype="tf32"),
        Cell(dtype="fp32"),
        Cell(lora_targets="all"),
        Cell(compile="regional"),
        Cell(compile="whole"),
        Cell(batch=64),
        Cell(batch=64, gradient_checkpointing=True),
        Cell(batch=16, released=True),
        Cell(method="augunet", batch=16, released=True),
        Cell(method="augunet", batch=1, released=True),
        Cell(method="augunet", batch=64),
        Cell(method="augunet", gradient_checkpointing=True),
        Cell(lora_targets="all", gradient_checkpointing=True),
    ]
    for batch in (1, 16):
        first += [Cell(batch=batch, dtype=dtype) for dtype in ("fp16", "tf32", "fp32")]
        first += [Cell(batch=batch, compile=what) for what in ("regional", "whole")]
        first += [Cell(batch=batch, lora_targets="all"), Cell(batch=batch, gradient_checkpointing=True)]
    first += [Cell(**predict, batch=8, dtype=dtype) for dtype in ("fp16", "fp32")]
    first += [Cell(**predict, batch=8, compile="whole")]
    first += [Cell(method="augunet", dtype=dtype) for dtype in ("fp16", "tf32", "fp32")]
    first += [Cell(method="augunet", lora_targets="all"), Cell(method="augunet", compile="regional")]
    first += [Cell(batch=64, released=True), Cell(method="augunet", batch=64, released=True)]
    return list(dict.fromkeys(first))


def arguments(cell: Cell, args: argparse.Namespace) -> argparse.Namespace:
    """The arguments that the makers of train_step.py and inference.py read. A folder has twice a batch's images."""
    values = asdict(cell) | {"base": args.base, "resolution": args.resolution, "rank": 8, "images": 2 * cell.batch}
    return argparse.Namespace(**values, vae=None, vae_encodes=False)


def makers(cell: Cell) -> dict[str, Callable]:
    """Variant -> maker, ours first."""
    every = train_step.MAKERS if cell.work == "training" else inference.MAKERS
    return {variant: every[variant] for variant in (["ours", "released"] if cell.released else ["ours"])}


def key_of(cell: Cell) -> str:
    return cell.name + (" with released" if cell.released else "")


def label(cell: Cell, variant: str) -> str:
    if variant == "ours":
        return cell.name
    return f"released, {Cell(cell.work, cell.method, cell.batch, 'fp32').name}"


@cache
def stored_counts() -> dict[str, dict]:
    return json.loads(COUNTS.read_text())["counts"]


def counted_as(cell: Cell, variant: str) -> Cell:
    """The cell whose counts are also this one's: uncompiled, of TF32 that in fp32 and of fp16 that in bf16."""
    if variant == "released":
        return Cell(cell.work, cell.method, cell.batch, "fp32", released=True)
    dtype = {"tf32": "fp32", "fp16": "bf16"}.get(cell.dtype, cell.dtype)
    return replace(cell, compile="off", dtype=dtype, released=False)


def counts(cell: Cell, variant: str, args: argparse.Namespace) -> dict | None:
    """See `counted.count`: of full size from COUNTS, else counted now; None: not counted."""
    cell = counted_as(cell, variant)
    if args.base is None and args.resolution == 512:
        return stored_counts().get(label(cell, variant))
    return count_now(cell, variant, args.base, args.resolution)


@cache
def count_now(cell: Cell, variant: str, base: str | None = None, resolution: int = 512) -> dict:
    """Counts of a step, or of one batch of predictions."""
    given = arguments(cell, argparse.Namespace(base=base, resolution=resolution))
    given.images = cell.batch
    return counted.count(makers(cell)[variant], given)
