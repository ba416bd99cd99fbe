"""Requirements of the networks without captions, and their flags and model cards."""

from pathlib import Path

import torch
from torch import Tensor

from miniworld.pretraining.gates import Gate, gates_table, unseen_scenes
from miniworld.pretraining.report import BEGIN, DRAWN, END, hours, write_card
from miniworld.pretraining.vae import save_sheet
from miniworld.pretraining.wasserstein import sliced_wasserstein
from utils.cli import Parser, path_flag

SHOWN = 64  # samples on the sheet

HEAD = """---
license: apache-2.0
---

# {name}

{text}

{begin}
{end}
"""


def sample_gates(images: Tensor, seed: int, ceiling: float | None = None) -> list[Gate]:
    """Sliced Wasserstein distance of samples (DRAWN,3,S,S) in [-1,1] to unseen scenes, on the scale of mini-sd's."""
    maps, _, _ = unseen_scenes(seed, 2 * DRAWN)
    here, other = maps["rgb"][:DRAWN], maps["rgb"][DRAWN:]
    found = sliced_wasserstein(images, here)
    mean = sum(found) / len(found)
    asked, met = ("", None) if ceiling is None else (f"below {ceiling:g}", mean < ceiling)
    levels = ", ".join(f"{value:.1f}" for value in found)
    floor = torch.tensor(sliced_wasserstein(other, here)).mean().item()
    return [
        Gate(f"sliced Wasserstein distance of samples, mean of levels ({levels})", f"{mean:.1f}", asked, met),
        Gate("the same of other scenes (the floor)", f"{floor:.1f}"),
    ]


def add_flags(parser: Parser, out: Path, steps: int, batch: int, scenes: int) -> None:
    """The flags of these pretrainings. `out` and the numbers are the defaults."""
    add = parser.add_argument
    add("--out", type=path_flag, default=out, help="folder of the network")
    add("--work", type=path_flag, default=Path("output/pretrain"), help="checkpoints, logs, sample sheets, scenes")
    add("--report", action="store_true", help="train nothing: measure what is in --out")
    add("--steps", type=int, default=steps, help="training steps")
    add("--batch", type=int, default=batch, help="images per step; for a GAN a multiple of 4")
    add("--scenes", type=int, default=scenes, help="training images")
    add("--seed", type=int, default=0, help="seed of images, weights and batches")
    parser.only("steps batch scenes", lambda a: not a.report, "with --report, which trains nothing")


def draw_sheet(images: Tensor, sheet: Path) -> None:
    """The first samples, 8 in a row."""
    sheet.parent.mkdir(parents=True, exist_ok=True)
    save_sheet(list(images[:SHOWN].split(8)), sheet)
    print(f"samples: {sheet}")


def write_report(out: Path, work: Path, stage: str, gates: list[Gate], text: str) -> None:
    """Print the gates. With the training's log, or if the card is missing, write the card of the folder `out`: the
    gates, the training's steps and hours, and `text` on how it was made.
    """
    found, card = gates_table(gates), out / "README.md"
    if not card.exists() or (work / stage / "log.jsonl").exists():
        found = "\n\n".join(part for part in (found, hours(work, (stage,))) if part)
        card.write_text(HEAD.format(name=out.name, text=text, begin=BEGIN, end=END))
        write_card(card, found)
    print(found)
