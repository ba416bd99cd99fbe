"""The paper's questions (arXiv 2311.17137), asked of a given generator with many short LoRA trainings.

    python -m studies.paper_questions --base miniworld/mini-sd

1 control: pretrained against random UNet,    4 does a better generator know more? (--snapshots)
  four intrinsics, two timesteps, two places  5 open: the timestep, the learning rate, the place
2 how few parameters: the rank                6 a base that predicts noise against one that predicts
3 how few labels                                velocity, at the paper's timestep (--velocity_base)
7 questions 1, 4 and 5 of a flow transformer (--flow_base), with a LoRA on all of its layers

Every training is kept as a JSON file in --work, and the same command continues an interrupted study. Tables and plots
are written to studies/results/paper_questions.md. Existing answers of the same study that are not asked again are
kept. Without --data, scenes of the mini world are rendered.
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
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from miniworld.pretraining.generator import fingerprint
from miniworld.pretraining.model_folder import FLOW_TIME
from studies.answers import reported_distances, step_of, write_answers
from studies.probe import HALVES, PLACES, Recipe, Setting, equal_ranks, load_task, probe
from utils.base_model.families import open_base
from utils.base_model.parts import Family
from utils.cli import Parser, path_flag
from utils.errors import InputError, note, run
from utils.intrinsics import INTRINSICS
from utils.system import atomic
from utils.system.compute import warn_of_slow_bf16

RANKS = (1, 2, 4, 8, 16, 32)
LABELS = (10, 25, 50, 100, 250, 500, 1000, 4000)
TIMESTEPS = (0, 200, 400, 600, 800, 999)
RATES = (0.25, 1, 4)  # times the usual learning rate
PAPER_TIMESTEP = 999
TARGETS = ("attention", "all")
KINDS = ("attention", "feedforward", "projection", "conv", "time", "feedforward,projection", "all")
EQUAL_RANK = 2  # rank of a LoRA on all layers; the others get as many parameters
FLOW_TIMES = (0.05, 0.2, 0.4, 0.7, 1.0)  # 0: image, 1: noise
FLOW_KINDS = ("attention", "feedforward", "modulation", "all")
QUESTIONS = ("1", "1-velocity", "2", "3", "4", "5", "5-timestep", "5-rates", "5-place", "5-layers", "6")
OF_FLOW = ("7", "7-control", "7-snapshots", "7-time", "7-place", "7-layers")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m studies.paper_questions",
        description=__doc__,
    )
    add = parser.add_argument
    add("--base", default="miniworld/mini-sd", help="Stable Diffusion: a folder or a hub name (miniworld/mini-sd)")
    add(
        "--data", type=path_flag, help="DIODE-like tree with normals/, depths/, truth/ and pseudo/; left out: rendered"
    )
    add("--work", type=path_flag, default=Path("output/paper_questions"), help="trainings, latents, rendered scenes")
    add("--docs", type=path_flag, default=Path("studies/results"), help="folder of paper_questions.md")
    add(
        "--snapshots",
        type=path_flag,
        help="question 4: the pretraining's folder with ema-*.pt, e.g. output/pretrain/unet",
    )
    add(
        "--velocity_base",
        type=path_flag,
        default=Path("miniworld/mini-sd-2"),
        help="questions 1-velocity and 6: a base that predicts velocity, which python -m miniworld.pretrain "
        "--velocity_from makes (miniworld/mini-sd-2)",
    )
    add(
        "--flow_base",
        type=path_flag,
        default=Path("miniworld/mini-flow"),
        help="question 7: a Stable Diffusion 3 (miniworld/mini-flow)",
    )
    add("--flow_snapshots", type=path_flag, help="question 7-snapshots: as --snapshots, e.g. output/pretrain/flow")
    add("--questions", nargs="+", choices=[*QUESTIONS, *OF_FLOW], default=list("1234567"), help="all")
    add("--seeds", type=int, default=3, help="trainings of each setting (3)")
    add("--steps", type=int, default=100, help="steps of each (100)")
    add("--batch", type=int, default=8, help="labels a step (8)")
    add("--learning_rate", type=float, default=4e-3, help="of all but the sweep in question 5 (4e-3)")
    add("--timestep", type=int, default=400, help="of all that do not ask for others (400; the paper's is 999)")
    add("--mixed_precision", choices=["no", "bf16"], default="bf16", help="autocast (bf16)")
    add("--resolution", type=int, default=64, help="pixels (64)")
    add("--labels", type=int, default=1000, help="labels of each training but question 3's (1000)")
    add("--train", type=int, default=4000, help="scenes to render for training (4000)")
    add("--val", type=int, default=100, help="unseen scenes to render and score (100)")
    add("--page", action="store_true", help="train nothing: tables and plots of the trainings that are done")
    add("--jobs", type=int, default=1 if torch.cuda.is_available() else os.cpu_count(), help="trainings at a time")
    parser.only("train val", lambda a: not a.data, "with --data, where nothing is rendered")
    parser.only("snapshots", lambda a: "4" in a.questions, "without question 4")
    parser.only("flow_base", lambda a: set(OF_FLOW) & set(a.questions), "without question 7")
    parser.only("flow_snapshots", lambda a: {"7", "7-snapshots"} & set(a.questions), "without question 7-snapshots")
    parser.only(
        "velocity_base", lambda a: {"1-velocity", "6"} & set(a.questions), "without questions 1-velocity and 6"
    )
    return parser.parse_args(argv)


def plan(args: argparse.Namespace, networks: dict[str, nn.Module]) -> dict[str, list[Setting]]:
    """Question -> settings, each once per seed. What several questions ask for is trained once.

    networks: of `base` and, where it is asked about, of `flow`.
    """
    asking = partial(is_asked, args)
    usual = Setting(labels=args.labels, learning_rate=args.learning_rate, timestep=args.timestep)
    both, timesteps = ("pretrained", "random"), tuple(dict.fromkeys((args.timestep, PAPER_TIMESTEP)))
    ranks = equal_ranks(networks["base"], KINDS, EQUAL_RANK) if asking("5-layers") else {}
    asked: dict[str, list[Setting]] = {
        "1": [
            replace(usual, task=task, unet=one, timestep=timestep, targets=targets)
            for task in INTRINSICS for targets in TARGETS for timestep in timesteps for one in both
        ],
        "1-velocity": [
            replace(usual, base=base, task=task, targets="all", unet=one)
            for base in bases(args, "1-velocity")[1:] for task in INTRINSICS for one in both
        ],
        "2": [replace(usual, rank=rank) for rank in RANKS],
        "3": [replace(usual, labels=labels) for labels in LABELS if labels <= args.train],
        "4": [replace(usual, unet=str(path)) for path in snapshots(args, "4")],
        "5-timestep": [replace(usual, timestep=timestep, unet=one) for timestep in TIMESTEPS for one in both],
        "5-rates": [
            replace(usual, unet=one, learning_rate=args.learning_rate * factor) for factor in RATES for one in both
        ],
        "5-place": [replace(usual, where=where) for where in PLACES],
        "5-layers": [
            replace(usual, targets=targets, rank=rank, timestep=timestep)
            for targets, rank in ranks.items() for timestep in timesteps
        ],
        "6": [
            replace(usual, base=base, targets=targets, timestep=PAPER_TIMESTEP)
            for base in bases(args, "6") for targets in TARGETS
        ],
    }  # fmt: skip
    if "flow" in networks:
        asked |= of_flow(args, networks["flow"], replace(usual, base="flow", targets="all", timestep=FLOW_TIME))
    chosen = {name: settings for name, settings in asked.items() if asking(name)}
    return {
        name: [replace(one, seed=seed) for one in settings for seed in range(args.seeds)]
        for name, settings in chosen.items()
    }


def of_flow(args: argparse.Namespace, network: nn.Module, usual: Setting) -> dict[str, list[Setting]]:
    """The flow transformer's questions -> settings, without seeds."""
    ranks = equal_ranks(network, FLOW_KINDS, EQUAL_RANK) if is_asked(args, "7-layers") else {}
    return {
        "7-control": [replace(usual, task=task, unet=one) for task in INTRINSICS for one in ("pretrained", "random")],
        "7-snapshots": [replace(usual, unet=str(path)) for path in snapshots(args, "7-snapshots")],
        "7-time": [replace(usual, timestep=time) for time in FLOW_TIMES],
        "7-place": [replace(usual, where=where) for where in ("everywhere", *HALVES)],
        "7-layers": [replace(usual, targets=targets, rank=rank) for targets, rank in ranks.items()],
    }


def is_asked(args: argparse.Namespace, question: str) -> bool:
    """By its name or by its number."""
    return bool({question, question[0]} & set(args.questions))


def bases(args: argparse.Namespace, question: str) -> tuple[str, ...]:
    """The bases that a question compares; none, with a note, where the second is not there."""
    if not is_asked(args, question):
        return ()
    file = args.velocity_base / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        note(
            f"question {question} is left out: no {args.velocity_base}; python -m miniworld.pretrain --velocity_from "
            "makes one"
        )
        return ()
    if json.loads(file.read_text()).get("prediction_type") != "v_prediction":
        raise InputError(f"--velocity_base={args.velocity_base}: does not predict velocity, by its {file.name}")
    return ("base", "velocity")


def snapshots(args: argparse.Namespace, question: str) -> list[Path]:
    """Snapshots of the pretraining whose step is a power of two, and the last; none, with a note, without a folder."""
    if not is_asked(args, question):
        return []
    flag = {"4": "snapshots", "7-snapshots": "flow_snapshots"}[question]
    folder = getattr(args, flag)
    if folder is None:
        note(f"question {question} is left out: it needs --{flag}, a folder that python -m miniworld.pretrain left")
        return []
    found = sorted(folder.glob("ema-*.pt"))
    chosen = [path for path in found if path == found[-1] or (step := step_of(path)) & (step - 1) == 0]
    if len(chosen) < 3:
        raise InputError(
            f"--{flag}={folder}: {len(chosen)} snapshots (ema-*.pt of steps that are powers of two, and the last), at "
            "least 3 are needed"
        )
    if question == "7-snapshots":
        reported_distances(args)  # or its InputError, before anything is trained
    return chosen


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    recipe = Recipe(args.steps, args.batch, args.mixed_precision, args.resolution)
    if args.mixed_precision == "bf16" and not torch.cuda.is_available():
        warn_of_slow_bf16(torch.bfloat16, "cpu", "--mixed_precision no is another study")
    data = args.data or render(args.work / "DIODE", args.train, args.val)
    paths = {"base": args.base, "velocity": str(args.velocity_base), "flow": str(args.flow_base)}
    opened = {"base": open_base(args.base)}
    opened |= {"flow": open_base(paths["flow"])} if set(OF_FLOW) & set(args.questions) else {}
    asked = plan(args, {name: base.network for name, base in opened.items()})
    study = {**asdict(recipe), "base": f"{fingerprint(opened['base'].network):08x}"}
    study |= {"learning_rate": args.learning_rate, "labels": args.labels, "timestep": args.timestep}
    study |= {"seeds": args.seeds, "unseen": args.val}
    todo = {one.name: one for settings in asked.values() for one in settings}
    files: dict[str, Path] = {}
    for kind in dict.fromkeys(one.base for one in todo.values()):
        loaded = opened.get(kind) or open_base(paths[kind])
        folder = runs_folder(args.work, recipe, data, loaded)
        own = {name: folder / f"{name}.json" for name, one in todo.items() if one.base == kind}
        files |= own
        absent = () if args.page else (todo[name].task for name, file in own.items() if not file.exists())
        for task in dict.fromkeys(absent):
            load_task(data, task, loaded, recipe, args.work)  # encode once, before the processes need it
    del opened, loaded
    missing = [] if args.page else [one for name, one in todo.items() if not files[name].exists()]
    missing.sort(key=lambda one: one.seed)  # so that an interrupted study has whole seeds
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        begun = [
            pool.submit(answer, one, args.jobs, paths[one.base], data, recipe, args.work, files[one.name])
            for one in missing
        ]
        for done in tqdm(as_completed(begun), total=len(begun), desc="trainings"):
            done.result()

    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    write_answers({name: whole_seeds(name, settings, results) for name, settings in asked.items()}, study, args)


def whole_seeds(question: str, settings: list[Setting], results: dict[str, dict]) -> list[dict]:
    """The question's results of those seeds whose trainings are all done, with a note where some are not."""
    unfinished = {one.seed for one in settings if one.name not in results}
    if unfinished:
        note(f"question {question}: {len(unfinished)} seeds are unfinished and left out; without --page they continue")
    return [results[one.name] for one in settings if one.seed not in unfinished]


def runs_folder(work: Path, recipe: Recipe, data: Path, base: Family) -> Path:
    """Folder of the results on this base, data and recipe."""
    text = f"{recipe} {data} {fingerprint(base.network)} {fingerprint(base.vae)}"
    for intrinsic in INTRINSICS.values():
        states = base.encode_prompt(intrinsic.prompt)
        by_name = states if isinstance(states, dict) else {"text": states}  # a tensor of SD 1.x and 2.x
        for _, one in sorted(by_name.items()):
            text += f" {zlib.crc32(one.detach().numpy().tobytes())}"
    folder = work / f"runs-{zlib.crc32(text.encode()):08x}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def answer(setting: Setting, jobs: int, base: str, data: Path, recipe: Recipe, work: Path, file: Path) -> None:
    """Run one training in a process of the pool, and keep its result in `file`."""
    if jobs > 1:
        torch.set_num_threads(1)
    loaded, tasks = prepared(base, data, recipe, work)
    result = probe(loaded, tasks(setting.task), setting, recipe)
    atomic.replace(file, lambda part: part.write_text(json.dumps(result)))


@cache
def prepared(name: str, data: Path, recipe: Recipe, work: Path):
    """The base model and a reader of tasks, once per process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = open_base(name).to(device, torch.float32)
    return base, cache(lambda task: load_task(data, task, base, recipe, work, device))


def render(root: Path, train: int, val: int) -> Path:
    """The mini world's scenes with exact albedo and shading; what is there already is kept."""
    words = ["--root", root, "--train", train, "--val", val, "--size", "128x96", "--truth"]
    subprocess.run([sys.executable, "-m", "miniworld.scenes", *map(str, words)], check=True)
    return root


if __name__ == "__main__":
    run(main)
