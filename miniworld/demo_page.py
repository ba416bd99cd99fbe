"""What the demo shows: a table and a picture of one run, and a page of all."""

import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from utils.image_io.panels import CAPTION_HEIGHT, sheet, strip
from utils.intrinsics import INTRINSICS, Intrinsic

METHODS = ["single", "augunet"]
SHOWN, GAP = (0, 3), 12  # of the page: which rows of each run (a room, a yard), pixels between them


def row_names(base: str, rows: Collection[str]) -> dict[str, str]:
    """Row -> its name in the table, for those rows that a run has, in the table's order."""
    names = {
        "lora": f"LoRA on all layers of {base}",
        "attention": f"LoRA on {base}'s attention layers alone (the paper's place)",
        "mean": "mean of the training labels, pixel by pixel",
        "random": "LoRA on all layers of a randomly initialised UNet",
        "untrained": "no training at all",
        "ceiling": "the label itself, through the VAE",
    }
    return {row: name for row, name in names.items() if row in rows}


def table(found: dict[str, dict], names: dict[str, str], intrinsic: Intrinsic, title: str) -> str:
    """Row -> result file as markdown: each score with its 95 % interval."""
    lines = [f"| {title} | {' | '.join(intrinsic.scores.values())} |"]
    lines.append("|---" * (1 + len(intrinsic.scores)) + "|")
    for name, result in found.items():
        cells = []
        for metric in intrinsic.scores:
            low, high = result["intervals"][metric]
            cells.append(f"{result['metrics'][metric]:.3g} [{low:.3g}, {high:.3g}]")
        lines.append(f"| {names[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(samples: list[dict], intrinsic: Intrinsic, folder: Path, zoom: int = 2) -> Image.Image:
    """RGB | ground truth | label | what lies in `folder` for each sample, enlarged."""
    rows = []
    for sample in samples:
        path = next(folder.glob(f"{Path(sample['stem']).name}_*.png"))
        picture = np.array(Image.open(path).convert("RGB"))
        prediction = torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1
        truth = intrinsic.map_kind.truth_panel(sample["gt"], sample["valid"])
        row = strip([sample["rgb"], truth, sample["target"], prediction])
        rows.append(row.resize((row.width * zoom, row.height * zoom), Image.Resampling.NEAREST))
    return sheet(rows, ["RGB", "ground truth", "label", "prediction"])


def write_page(out: Path) -> None:
    """The tables of all runs in `out` as one Markdown file, and some rows of their pictures as one picture."""
    runs = {(task, method): out / f"{task}-{method}" for task in INTRINSICS for method in METHODS}
    runs = {what: run for what, run in runs.items() if (run / "results.md").exists()}
    if not runs:
        sys.exit(f"error: {out} holds no run of the demo; make demo-all makes them")
    (out / "all.md").write_text("\n".join((run / "results.md").read_text() for run in runs.values()))
    methods = [method for method in METHODS if any(method == one for _, one in runs)]
    tasks = [task for task in INTRINSICS if any(task == one for one, _ in runs)]
    tiles = {what: Image.open(run / "demo.png") for what, run in runs.items()}
    width = next(iter(tiles.values())).width
    side = width // 4
    right, down = width + GAP, 2 * CAPTION_HEIGHT + len(SHOWN) * side + GAP
    page = Image.new("RGB", (len(methods) * right, len(tasks) * down), "white")
    draw = ImageDraw.Draw(page)
    for (task, method), tile in tiles.items():
        left, top = methods.index(method) * right, tasks.index(task) * down
        draw.text((left + 2, top + 1), f"{task}, {method}", fill="black")
        page.paste(tile.crop((0, 0, width, CAPTION_HEIGHT)), (left, top + CAPTION_HEIGHT))
        for place, row in enumerate(SHOWN):
            found = tile.crop((0, CAPTION_HEIGHT + row * side, width, CAPTION_HEIGHT + (row + 1) * side))
            page.paste(found, (left, top + 2 * CAPTION_HEIGHT + place * side))
    page.save(out / "all.jpg", quality=92)
    print(f"{len(runs)} runs: {out / 'all.md'} and {out / 'all.jpg'}")
