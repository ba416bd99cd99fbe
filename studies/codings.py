"""Codings of depth labels, and holes left out of the loss: LoRAs for depth on the same scenes, with the same scores.

    python -m studies.codings

Labels are made from the scenes' exact depth, which has holes, once in each coding. LoRAs on all layers of mini-sd,
t = 400, 8 labels a step, by the single-step script; unseen scenes, by inference_sd_single.py and evaluate.py. Writes
the table in studies/results/codings.md. Existing results in --work are kept.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from miniworld.demo_steps import at_once, python
from miniworld.pretraining.report import write_card
from studies.tables import headline, ratio, table, with_interval
from utils.cli import Parser, path_flag
from utils.errors import run
from utils.intrinsics import DEPTH
from utils.lora import SAFETENSORS
from utils.paths import ROOT
from utils.system.processes import available_cores

LABELS = {"linear": "linear", "sqrt": "sqrt", "log": "log", "masked": "linear"}  # setting -> coding of its labels
FLAGS = {name: ["--depth_coding", coding] for name, coding in LABELS.items()}
FLAGS["masked"] += ["--masked_loss"]
TITLES = {"masked": "linear, `--masked_loss`"}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m studies.codings", description=__doc__)
    add = parser.add_argument
    add("--work", type=path_flag, default=Path("output/codings"), help="scenes, labels, LoRAs, maps, scores")
    add("--docs", type=path_flag, default=Path("studies/results"), help="folder of codings.md")
    add("--seeds", type=int, default=3, help="trainings of each setting")
    add("--steps", type=int, default=100, help="of each training")
    add("--train", type=int, default=300, help="labelled scenes")
    add("--val", type=int, default=100, help="unseen scenes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    work = args.work.resolve()
    diode = work / "DIODE"
    python("-m", "miniworld.scenes", "--root", diode, "--train", args.train, "--val", args.val, "--size", "128x96")
    for coding in (one for one in sorted(set(LABELS.values())) if not (work / one).exists()):
        words = ("--task", "depth", "--from", "ground_truth", "--input_dir", diode, "--output_dir", work / coding)
        python(ROOT / "pseudo_label.py", *words, "--depth_coding", coding)
    runs = {work / f"{name}-{seed}": (name, seed) for seed in range(args.seeds) for name in LABELS}
    untrained = [out for out in runs if not (out / SAFETENSORS).exists()]
    unscored = [out for out in runs if not (out / "scores.json").exists()]
    in_turns({out.name: training(*runs[out], out, diode, args.steps) for out in untrained}, work, "training")
    in_turns({out.name: inference(out, diode) for out in unscored}, work, "predicting")
    in_turns({out.name: scoring(out, diode) for out in unscored}, work, "scoring")
    text = table(("labels", headline("depth"), "of linear"), rows(work, args.seeds))
    write_card(args.docs / "codings.md", text)
    print(text)


def in_turns(commands: dict[str, list[object]], work: Path, what: str) -> None:
    """Run all of them, as many at a time as there are cores."""
    names, cores = list(commands), available_cores()
    for first in range(0, len(names), cores):
        at_once({name: commands[name] for name in names[first : first + cores]}, work, what)


def training(name: str, seed: int, out: Path, diode: Path, steps: int) -> list[object]:
    words = [ROOT / "sd_single_diode_pseudo_depth.py", "--pretrained_model_name_or_path", "miniworld/mini-sd"]
    words += ["--train_data_dir", diode / "depths", "--pseudo_root", diode.parent / LABELS[name], "--output_dir", out]
    words += ["--resolution", 64, "--timestep", 400, "--lora_targets", "all", "--train_batch_size", 8, "--seed", seed]
    words += ["--learning_rate", 4e-3, "--lr_scheduler", "linear", "--max_train_steps", steps, *FLAGS[name]]
    return [*words, "--validation_steps", 0, "--cache_dir", diode.parent / "latents", "--report_to", "none"]


def inference(out: Path, diode: Path) -> list[object]:
    words = [ROOT / "inference_sd_single.py", "--lora", out, "--input_dir", diode / "depths" / "val"]
    return [*words, "--output_dir", out / "maps", "--center_crop", "--npy", "--batch_size", 10]


def scoring(out: Path, diode: Path) -> list[object]:
    words = [ROOT / "evaluate.py", "--task", "depth", "--protocol", "diode", "--gt_dir", diode / "depths" / "val"]
    words += ["--pred_dir", out / "maps" / "depth" / "predicted", "--center_crop"]
    return [*words, "--output", out / "scores.json"]


def rows(work: Path, seeds: int) -> list[tuple[str, ...]]:
    """A line for each setting: its error with an interval over seeds and scenes, and its ratio to linear labels'."""
    errors = {name: np.array([per_image(work / f"{name}-{seed}") for seed in range(seeds)]) for name in LABELS}
    return [
        (TITLES.get(name, f"`{name}`"), with_interval(found), ratio(found, errors["linear"]).text)
        for name, found in errors.items()
    ]


def per_image(out: Path) -> list[float]:
    metric = next(iter(DEPTH.scores))
    found = json.loads((out / "scores.json").read_text())["per_image"]
    return [one[metric] for one in found]


if __name__ == "__main__":
    run(main)
