"""Memory of training at full size, counted: the tables of docs/hardware.md, and what `make bench-gpu` needs.

    python -m benchmarks.memory                  # the tables, from benchmarks/results/memory.json
    python -m benchmarks.memory --families       # the table of the base models in benchmarks/README.md
    python -m benchmarks.memory --recount        # after a change of the training step: counts again, 5 minutes of CPU

Nothing is measured and no weights are loaded; see benchmarks/counted.py.
"""

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product

import torch

from benchmarks.cells import COUNTS, Cell, cells, count_now, counted_as, label, makers, stored_counts
from benchmarks.models import base_for
from utils.cli import Parser
from utils.errors import run
from utils.lora import add_lora, lora_parameters

BATCHES, DTYPES = (1, 4, 16), ("fp32", "bf16")
SIZES = (4, 6, 8, 12, 24)  # GB of GPUs
FAMILIES = COUNTS.with_name("families.json")
TITLES = {  # by what --base names
    "sd1": "Stable Diffusion 1.5",
    "sdxl": "SDXL",
    "sd3": "Stable Diffusion 3.5 medium",
    "flux2": "FLUX.2-klein 4B",
    "z_image": "Z-Image",
    "qwen_image": "Qwen-Image",
}
FAMILY_CELLS = {  # one image of 512 px
    "plain": Cell(batch=1),
    "checkpointing": Cell(batch=1, gradient_checkpointing=True),
    "int8": Cell(batch=1, gradient_checkpointing=True, base_precision="int8"),
    "nf4": Cell(batch=1, gradient_checkpointing=True, base_precision="nf4"),
    "predicting": Cell(work="inference", batch=1),
}
SPARE = 1.0  # GB of them for the CUDA context, cuDNN's workspace and the allocator's fragments


def trained() -> list[Cell]:
    """The cells of the memory table."""
    every = product(("attention", "all"), (False, True), DTYPES, BATCHES)
    return [Cell(batch=b, dtype=d, gradient_checkpointing=c, lora_targets=t) for t, c, d, b in every]


def predicted() -> list[Cell]:
    """The same batches in prediction, as validation makes it."""
    return [Cell(work="inference", batch=batch, dtype=dtype) for dtype, batch in product(DTYPES, BATCHES)]


def wanted() -> Iterator[tuple[Cell, str]]:
    """(cell, variant) of everything that is counted, each once."""
    every = [(cell, variant) for cell in (*trained(), *predicted(), *cells()) for variant in makers(cell)]
    yield from {label(counted_as(cell, variant), variant): (cell, variant) for cell, variant in every}.values()


def memory_table() -> str:
    """Peak GB in bf16 / fp32, by batch, checkpointing and layers. Markdown."""
    lines = [f"| GB at peak, bf16 / fp32 | {' | '.join(f'batch {batch}' for batch in BATCHES)} |", "|---" * 4 + "|"]
    for targets, checkpointing in product(("attention", "all"), (False, True)):
        row = []
        for batch in BATCHES:
            cell = Cell(batch=batch, gradient_checkpointing=checkpointing, lora_targets=targets)
            row.append(" / ".join(f"{peak(replace(cell, dtype=dtype)):.1f}" for dtype in ("bf16", "fp32")))
        how = " with `--gradient_checkpointing`" if checkpointing else ""
        lines.append(f"| {targets} layers{how} | {' | '.join(row)} |")
    return "\n".join(lines)


def peak(cell: Cell) -> float:
    return stored_counts()[cell.name]["peak_gb"]


def largest_batch(gb: float, **how: object) -> int:
    """The largest batch whose training and validation fit into `gb`, by straight lines between the counted batches."""
    points = []
    for batch in BATCHES:
        cell = Cell(batch=batch, **how)
        points.append((batch, max(peak(cell), peak(Cell("inference", batch=batch, dtype=cell.dtype)))))
    segments = list(pairwise(points))

    def needed(batch: int) -> float:
        (b0, gb0), (b1, gb1) = next((s for s in segments if batch <= s[1][0]), segments[-1])
        return gb0 + (gb1 - gb0) * (batch - b0) / (b1 - b0)

    return max((batch for batch in range(1, 257) if needed(batch) <= gb), default=0)


def fits_table() -> str:
    """The largest batch on GPUs of SIZES. Markdown."""
    ways = {
        "bf16 or fp16": {"dtype": "bf16"},
        "with `--gradient_checkpointing`": {"dtype": "bf16", "gradient_checkpointing": True},
        "fp32": {"dtype": "fp32"},
        "fp32 with `--gradient_checkpointing`": {"dtype": "fp32", "gradient_checkpointing": True},
    }
    lines = [f"| largest batch | {' | '.join(f'{size} GB' for size in SIZES)} |", "|---" * (len(SIZES) + 1) + "|"]
    for text, how in ways.items():
        lines.append(f"| {text} | {' | '.join(str(largest_batch(size - SPARE, **how) or '-') for size in SIZES)} |")
    return "\n".join(lines)


def count_family(name: str, resolution: int = 512) -> dict:
    """Parameters of the network, its VAE and its LoRA of rank 8 on attention, and the counts of FAMILY_CELLS."""
    base = base_for(Namespace(base=name, method="single"), "meta")
    sizes = {part: sum(weight.numel() for weight in getattr(base, part).parameters()) for part in ("network", "vae")}
    add_lora(base.network, 8)
    sizes["lora"] = sum(weight.numel() for weight in lora_parameters(base.network))
    return sizes | {how: count_now(cell, "ours", name, resolution) for how, cell in FAMILY_CELLS.items()}


def families_table() -> str:
    """Parameters and GB of each base, from FAMILIES. Markdown."""
    lines = [
        "| base | parameters of network, VAE | weights in bf16 | LoRA, gradient, AdamW | saved activations "
        "| the same with checkpointing | training at peak | the same with checkpointing | that in int8 | in nf4 "
        "| predicting |",
        "|---" * 11 + "|",
    ]
    for name, found in json.loads(FAMILIES.read_text())["counts"].items():
        row = [TITLES[name], f"{found['network'] / 1e9:.3f} B, {found['vae'] / 1e9:.3f} B"]
        row += [f"{2 * found['network'] / 1e9:.2f} + {2 * found['vae'] / 1e9:.2f}", f"{16 * found['lora'] / 1e9:.2f}"]
        row += [
            f"{found[how][key]:.2f}" if how in found else "-"
            for key in ("saved_gb", "peak_gb")
            for how in ("plain", "checkpointing")
        ]
        row += [f"{found[how]['peak_gb']:.2f}" if how in found else "-" for how in ("int8", "nf4", "predicting")]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--recount", action="store_true", help="count again, and write the results")
    parser.add_argument("--families", action="store_true", help="of Stable Diffusion 1.5 and the newer base models")
    args = parser.parse_args(argv)
    if args.families:
        if args.recount:
            found = {}
            for name in TITLES:
                found[name] = count_family(name)
                print(name, found[name], flush=True)
            FAMILIES.write_text(json.dumps({"torch": torch.__version__, "counts": found}, indent=1) + "\n")
        print(families_table())
        return
    if args.recount:
        found = {}
        for cell, variant in wanted():
            plain = counted_as(cell, variant)
            found[label(plain, variant)] = count_now(plain, variant)
            print(label(plain, variant), found[label(plain, variant)], flush=True)
        COUNTS.write_text(json.dumps({"torch": torch.__version__, "counts": found}, indent=1) + "\n")
        stored_counts.cache_clear()
    print(memory_table(), fits_table(), sep="\n\n")


if __name__ == "__main__":
    run(main)
