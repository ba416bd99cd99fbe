"""The paper's first question of its other generators: what a GAN and an autoregressive model know of the scene.

    python -m benchmarks.families

For each family, intrinsic and seed one LoRA on the trained generator and one on the same network with random weights,
by gan_pseudo.py and ar_pseudo.py as they are; beside them the mean label, a linear read-out of w (GAN), and the label
through the tokens (autoregressive). Runs lie in --work; interrupted, the same command goes on. Tables go into
docs/generators.md.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.answers import headline, interval, resample, table
from benchmarks.held_out import (
    HELD_OUT,
    ar_errors,
    gan_errors,
    generated,
    linear_readout,
    mean_label,
    random_generator,
    scenes,
    through_tokens,
)
from miniworld.pretraining.report import write_card
from utils.cli import Parser, path_flag
from utils.errors import run
from utils.generators.ar_files import load_autoregressive
from utils.intrinsics import INTRINSICS
from utils.lora import SAFETENSORS, read_lora

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = {"gan": ROOT / "miniworld" / "mini-gan", "ar": ROOT / "miniworld" / "mini-ar"}
TEACHER = ROOT / "miniworld" / "mini-teacher"
TITLES = {"gan": "GAN: mini-gan, labels by mini-teacher", "ar": "Autoregressive: mini-ar, exact truth"}
BATCH, RATE, VAL = 8, 4e-3, 100


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.families", description=__doc__)
    add = parser.add_argument
    add("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    add("--tasks", nargs="+", choices=list(INTRINSICS), default=list(INTRINSICS))
    add("--seeds", type=int, default=3, help="trainings of each setting")
    add("--steps", type=int, default=300, help="of each training")
    add("--images", type=int, default=300, help="labelled pictures of each training")
    add("--work", type=path_flag, default=Path("output/families"), help="trainings")
    add("--docs", type=path_flag, default=Path("docs"), help="folder of generators.md")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    sections = [
        f"{args.steps} steps of {BATCH} labels out of {args.images}, rank 8, learning rate {RATE:g} falling linearly "
        f"to 0; {args.seeds} seeds, {VAL} unseen pictures. Brackets: 95 % bootstrap intervals over seeds and pictures."
    ]
    for family in args.families:
        rows = {task: measure(family, task, args) for task in args.tasks}
        head = ("intrinsic", "error", *next(iter(rows.values())))
        lines = [(task, headline(task), *cells.values()) for task, cells in rows.items()]
        sections.append(f"### {TITLES[family]}\n\n{table(head, lines)}")
    text = "\n\n".join(sections)
    write_card(args.docs / "generators.md", text)
    print(text)


def measure(family: str, task: str, args: argparse.Namespace) -> dict[str, str]:
    """Column -> cell of one intrinsic's row."""
    pretrained = FAMILIES[family]
    bases = {"trained": pretrained, "random": random_generator(pretrained, args.work / f"{family}-random")}
    loras = {
        name: [train(family, task, base, seed, args) for seed in range(args.seeds)] for name, base in bases.items()
    }
    if family == "gan":
        train_items = generated(pretrained, TEACHER, task, args.images, 0)
        items = {name: generated(pretrained, TEACHER, task, VAL, HELD_OUT, base) for name, base in bases.items()}
        found = {name: [gan_errors(bases[name], lora, items[name], task) for lora in loras[name]] for name in bases}
        references = {
            "linear read-out of w": linear_readout(train_items, items["trained"], task),
            "mean label": mean_label(train_items, items["trained"], task),
        }
    else:
        diode = args.work / "DIODE"
        side = load_autoregressive(str(pretrained)).resolution
        train_items, items = (scenes(diode, task, split, side) for split in ("train", "val"))
        found = {
            name: [ar_errors(load_autoregressive(str(bases[name])), lora, items, task) for lora in loras[name]]
            for name in bases
        }
        references = {
            "mean label": mean_label(train_items, items, task),
            "label through the tokens": through_tokens(load_autoregressive(str(pretrained)), items, task),
        }
    count = sum(value.numel() for value in read_lora(loras["trained"][0]).state.values())
    columns = {"LoRA on the trained generator": found["trained"], "on random weights": found["random"]}
    cells = {name: shown(np.stack(values)) for name, values in columns.items()}
    return cells | {name: shown(values[None]) for name, values in references.items()} | {"parameters": f"{count:,}"}


def train(family: str, task: str, base: Path, seed: int, args: argparse.Namespace) -> Path:
    """Run the family's script, unless it has run to its end; its output folder."""
    folder = args.work / f"{family}-{task}-{base.name}-{seed}"
    if (folder / SAFETENSORS).is_file():
        return folder
    words = ["--task", task, "--pretrained_model_name_or_path", base, "--output_dir", folder, "--seed", seed]
    words += ["--max_train_steps", args.steps, "--train_batch_size", BATCH, "--rank", 8, "--learning_rate", RATE]
    words += ["--num_train_imgs", args.images, "--lr_scheduler", "linear", "--validation_steps", 0]
    words += ["--report_to", "none", "--resume_from_checkpoint", "latest"]
    if family == "gan":
        words += ["--teacher", TEACHER, "--pictures_from", FAMILIES[family]]
    else:
        diode = args.work / "DIODE"
        python("-m", "miniworld.scenes", "--root", diode, "--train", 300, "--val", VAL, "--truth")
        words += ["--train_data_dir", diode / INTRINSICS[task].truth_folder, "--pseudo_root", diode / "pseudo" / task]
    python(ROOT / f"{family}_pseudo.py", *words)
    return folder


def python(*words: object) -> None:
    """Run Python in the project's root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *map(str, words)], check=True, cwd=ROOT, env=environment)


def shown(values: np.ndarray) -> str:
    """Mean with its interval, of errors (seeds, pictures)."""
    low, high = interval(resample(values))
    return f"{np.nanmean(values):.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    run(main)
