"""The paper's questions (arXiv 2311.17137), asked of a generator at hand by many short LoRA trainings.

    python -m benchmarks.paper_questions --base miniworld/mini-sd

1 control: pretrained against randomly initialised UNet, four intrinsics     4 does a better generator know more?
2 how few parameters: the rank                                               5 open: the timestep, the learning
3 how few labels                                                               rate, and where the LoRA sits

Every training is kept as a JSON file in --work; interrupted, the same command goes on. Tables and plots go into
docs/paper_questions.md. Without --data, scenes of the mini world are rendered.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.answers import write_answers
from benchmarks.probe import PLACES, Recipe, Setting, load_task, probe
from miniworld.pretraining.generator import fingerprint
from utils.cli import Parser, path_flag
from utils.errors import InputError, note, run
from utils.intrinsics import INTRINSICS
from utils.models import load_base
from utils.system import atomic

RANKS = (1, 2, 4, 8, 16, 32)
LABELS = (10, 25, 50, 100, 250, 500, 1000, 4000)
TIMESTEPS = (0, 200, 400, 600, 800, 999)
RATES = (0.25, 1, 4)  # times the usual learning rate


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.paper_questions",
        description=__doc__,
    )
    add = parser.add_argument
    add("--base", default="miniworld/mini-sd", help="Stable Diffusion: a folder or a hub name (miniworld/mini-sd)")
    add(
        "--data", type=path_flag, help="DIODE-like tree with normals/, depths/, truth/ and pseudo/; left out: rendered"
    )
    add("--work", type=path_flag, default=Path("output/paper_questions"), help="trainings, latents, rendered scenes")
    add("--docs", type=path_flag, default=Path("docs"), help="folder of paper_questions.md (docs)")
    add(
        "--snapshots",
        type=path_flag,
        help="question 4: the pretraining's folder with ema-*.pt, e.g. output/pretrain/unet",
    )
    add("--questions", type=int, nargs="+", choices=range(1, 6), default=[1, 2, 3, 4, 5])
    add("--seeds", type=int, default=3, help="trainings of each setting (3)")
    add("--steps", type=int, default=100, help="steps of each (100)")
    add("--batch", type=int, default=8, help="labels a step (8)")
    add("--learning_rate", type=float, default=4e-3, help="of all but the sweep in question 5 (4e-3)")
    add("--timestep", type=int, default=400, help="of all but question 5's (400; the paper's is 999)")
    add("--mixed_precision", choices=["no", "bf16"], default="bf16", help="autocast (bf16)")
    add("--resolution", type=int, default=64, help="pixels (64)")
    add("--labels", type=int, default=1000, help="labels of each training but question 3's (1000)")
    add("--train", type=int, default=4000, help="scenes to render for training (4000)")
    add("--val", type=int, default=100, help="unseen scenes to render and score (100)")
    add("--jobs", type=int, default=1 if torch.cuda.is_available() else os.cpu_count(), help="trainings at a time")
    return parser.parse_args(argv)


def plan(args: argparse.Namespace) -> dict[str, list[Setting]]:
    """Question -> settings, each once per seed. What several questions ask for is trained once."""
    usual = Setting(labels=args.labels, learning_rate=args.learning_rate, timestep=args.timestep)
    both = ("pretrained", "random")
    asked: dict[str, list[Setting]] = {
        "1": [replace(usual, task=task, unet=unet) for task in INTRINSICS for unet in both],
        "2": [replace(usual, rank=rank) for rank in RANKS],
        "3": [replace(usual, labels=labels) for labels in LABELS if labels <= args.train],
        "4": [replace(usual, unet=str(path)) for path in snapshots(args)],
        "5 timestep": [replace(usual, timestep=timestep, unet=unet) for timestep in TIMESTEPS for unet in both],
        "5 rates": [
            replace(usual, unet=unet, learning_rate=args.learning_rate * factor) for factor in RATES for unet in both
        ],
        "5 place": [replace(usual, where=where) for where in PLACES],
    }
    chosen = {name: settings for name, settings in asked.items() if int(name[0]) in args.questions}
    return {
        name: [replace(one, seed=seed) for one in settings for seed in range(args.seeds)]
        for name, settings in chosen.items()
    }


def snapshots(args: argparse.Namespace) -> list[Path]:
    if 4 not in args.questions:
        return []
    if args.snapshots is None:
        note("question 4 is left out: it needs --snapshots, a folder that python -m miniworld.pretrain left")
        return []
    found = sorted(args.snapshots.glob("ema-*.pt"))
    if len(found) < 3:
        raise InputError(f"{args.snapshots}: {len(found)} snapshots (ema-*.pt), at least 3 are needed")
    return found


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    recipe = Recipe(args.steps, args.batch, args.mixed_precision, args.resolution)
    data = args.data or render(args.work / "DIODE", args.train, args.val)
    base = load_base(args.base)
    crc = zlib.crc32(f"{recipe} {data} {fingerprint(base.unet)} {fingerprint(base.vae)}".encode())
    folder = args.work / f"runs-{crc:08x}"
    folder.mkdir(parents=True, exist_ok=True)

    asked = plan(args)
    todo = {one.name: one for settings in asked.values() for one in settings}
    missing = [one for name, one in todo.items() if not (folder / f"{name}.json").exists()]
    used = {one.task for one in missing}
    for task in [task for task in INTRINSICS if task in used]:  # encode once, before the processes need it
        load_task(data, task, base, recipe, args.work)
    del base
    common = (args.base, data, recipe, args.work, folder)
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        begun = [pool.submit(answer, one, args.jobs, *common) for one in missing]
        for done in tqdm(as_completed(begun), total=len(begun), desc="trainings"):
            done.result()

    results = {name: json.loads((folder / f"{name}.json").read_text()) for name in todo}
    answers = {name: [results[one.name] for one in settings] for name, settings in asked.items()}
    write_answers(answers, asdict(recipe), args)


def answer(setting: Setting, jobs: int, base: str, data: Path, recipe: Recipe, work: Path, folder: Path) -> None:
    """Run one training in a process of the pool, and keep its result."""
    if jobs > 1:
        torch.set_num_threads(1)
    loaded, tasks = prepared(base, data, recipe, work)
    result = probe(loaded, tasks(setting.task), setting, recipe)
    atomic.replace(folder / f"{setting.name}.json", lambda part: part.write_text(json.dumps(result)))


@cache
def prepared(name: str, data: Path, recipe: Recipe, work: Path):
    """The base model and a reader of tasks, once per process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = load_base(name).to(device, torch.float32)
    return base, cache(lambda task: load_task(data, task, base, recipe, work, device))


def render(root: Path, train: int, val: int) -> Path:
    """The mini world's scenes with exact albedo and shading; what is there already is kept."""
    words = ["--root", root, "--train", train, "--val", val, "--size", "128x96", "--truth"]
    subprocess.run([sys.executable, "-m", "miniworld.scenes", *map(str, words)], check=True)
    return root


if __name__ == "__main__":
    run(main)
