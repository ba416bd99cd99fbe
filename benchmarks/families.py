"""The paper's first question of its other generators: what a GAN and an autoregressive model know of the scene.

    python -m benchmarks.families

For each family, intrinsic and seed one LoRA on the trained generator and one on the same network with random weights,
by gan_pseudo.py and ar_pseudo.py as they are; beside them the mean label, a linear read-out of w (GAN), and the label
through the tokens (autoregressive). Runs lie in --work; interrupted, the same command goes on. Tables go into
docs/generators.md.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.answers import headline, table, with_interval
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
from miniworld.demo_steps import ROOT, python
from miniworld.pretraining.report import write_card
from utils.cli import Parser, path_flag
from utils.errors import run
from utils.generators.ar_files import load_autoregressive
from utils.intrinsics import INTRINSICS
from utils.lora import SAFETENSORS, read_lora

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
    if "ar" in args.families:
        python(
            "-m", "miniworld.scenes", "--root", args.work / "DIODE", "--train", args.images, "--val", VAL, "--truth"
        )
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
    bases = {
        "LoRA on the trained generator": FAMILIES[family],
        "on random weights": random_generator(FAMILIES[family], args.work / f"{family}-random"),
    }
    seeds = range(args.seeds)
    loras = {name: [train(family, task, base, seed, args) for seed in seeds] for name, base in bases.items()}
    found = (of_gan if family == "gan" else of_transformer)(task, bases, loras, args)
    parameters = sum(value.numel() for value in read_lora(loras[next(iter(bases))][0]).state.values())
    return {name: with_interval(values) for name, values in found.items()} | {"parameters": f"{parameters:,}"}


Bases, Loras, Errors = dict[str, Path], dict[str, list[Path]], dict[str, np.ndarray]  # each by column


def of_gan(task: str, bases: Bases, loras: Loras, args: argparse.Namespace) -> Errors:
    """Errors (seeds, pictures) of the LoRAs and of what needs no generator."""
    known, unseen = (
        generated(FAMILIES["gan"], TEACHER, task, count, seed) for count, seed in ((args.images, 0), (VAL, HELD_OUT))
    )
    found = {}
    for name, base in bases.items():
        own = base == FAMILIES["gan"]
        items = unseen if own else generated(FAMILIES["gan"], TEACHER, task, VAL, HELD_OUT, base)
        found[name] = np.stack([gan_errors(base, lora, items, task) for lora in loras[name]])
    found["linear read-out of w"] = linear_readout(known, unseen, task)[None]
    return found | {"mean label": mean_label(known, unseen, task)[None]}


def of_transformer(task: str, bases: Bases, loras: Loras, args: argparse.Namespace) -> Errors:
    """Errors (seeds, pictures) of the LoRAs, of the mean label, and of the label itself as tokens."""
    trained = load_autoregressive(str(FAMILIES["ar"]))
    known, unseen = (scenes(args.work / "DIODE", task, split, trained.resolution) for split in ("train", "val"))
    found = {}
    for name, base in bases.items():
        each = [ar_errors(load_autoregressive(str(base)), lora, unseen, task) for lora in loras[name]]
        found[name] = np.stack(each)
    found["mean label"] = mean_label(known, unseen, task)[None]
    return found | {"label through the tokens": through_tokens(trained, unseen, task)[None]}


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
        words += ["--train_data_dir", diode / INTRINSICS[task].truth_folder, "--pseudo_root", diode / "pseudo" / task]
    python(ROOT / f"{family}_pseudo.py", *words)
    return folder


if __name__ == "__main__":
    run(main)
