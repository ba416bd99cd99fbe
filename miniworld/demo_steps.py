"""The demo's steps, each by the command that a user with DIODE and Stable Diffusion runs, and the demo's tables."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from dataloaders.diode import Diode
from miniworld.references import evaluation_flags, random_control, untrained_lora, write_mean_label, write_vae_ceiling
from utils.image_io.panels import CAPTION_HEIGHT, sheet, strip
from utils.intrinsics import INTRINSICS, Intrinsic
from utils.lora import CONV_IN, SAFETENSORS, read_lora
from utils.paths import ROOT
from utils.system.processes import available_cores

DONOR = ROOT / "miniworld" / "mini-ip2p"
SCRIPTS = {"single": "sd_single", "augunet": "augunet"}
INFERENCE = {"single": "inference_sd_single.py", "augunet": "inference_augunet.py"}
PAGE_ROWS, GAP = (0, 3), 12  # the rows of each run on the page (a room, a yard), and pixels between runs
SIDE, ROWS, RANK = 64, 6, 16
BATCH = 8


@dataclass(frozen=True)
class Training:
    """One of the trainings that run in parallel: a LoRA on these layers of this base."""

    base: Path
    targets: str


def run_demo(args: argparse.Namespace) -> None:
    """Render, train, predict and score in `args.out`. `args`: as `miniworld.demo` parses them."""
    intrinsic, method, base = INTRINSICS[args.task], args.method, args.base.resolve()
    diode, out = args.out.resolve() / "DIODE", args.out.resolve() / f"{args.task}-{method}"

    step("1/4  render scenes in DIODE's layout, with labels")
    size = ("--train", args.train, "--val", args.val, "--size", "128x96", "--truth", "--seed", args.seed)
    python("-m", "miniworld.scenes", "--root", diode, *size)
    shutil.rmtree(
        out, ignore_errors=True
    )  # only now: scenes of other settings end the run above, and the old results are kept

    step(f"2/4  train LoRAs for {args.steps} steps of {BATCH} labels, in parallel: on the base, and for comparison")
    trainings = {"lora": Training(base, "all")}
    if not args.only_lora:
        trainings["random"] = Training(random_control(base, out / "random-sd"), "all")
        if method == "single":
            trainings["attention"] = Training(base, "attention")
    train(trainings, args, diode, out)

    step("3/4  predict unseen images")
    train_set, unseen = (
        Diode(intrinsic, diode / intrinsic.truth_folder, diode / "pseudo" / args.task, split, resolution=SIDE)
        for split in ("train", "val")
    )
    images = out / "unseen"
    images.mkdir()
    for stem in unseen.stems:
        shutil.copy(unseen.rgb_root / f"{stem}.png", images)
    header = {"task": args.task, "method": {"single": "single-step"}.get(method, method), "steps": 0}
    header |= {"timestep": args.timestep} if method == "single" else {}
    untrained_lora(base, DONOR if method == "augunet" else None, out / "untrained", header)
    inference = {}
    for name in (*trainings, "untrained"):
        words = [ROOT / INFERENCE[method], "--lora", out / name, "--input_dir", images]
        words += ["--output_dir", out / "predictions" / name]
        words += ["--pretrained_model_name_or_path", trainings[name].base if name in trainings else base]
        words += ["--resolution", SIDE, "--center_crop", "--batch_size", 10, "--npy"]
        inference[f"predict-{name}"] = words
    at_once(inference, out)
    write_mean_label(train_set, unseen.stems, intrinsic, out / "predictions" / "mean")
    write_vae_ceiling(base, unseen, intrinsic, out / "predictions" / "ceiling")

    step("4/4  score")
    names = row_names(base.name, (*trainings, "mean", "untrained", "ceiling"))
    at_once({f"score-{name}": scoring(name, intrinsic, diode, out) for name in names}, out)
    results = {name: json.loads((out / f"{name}.json").read_text()) for name in names}
    if args.keep:
        keep(out / "lora", base, args.keep)
    at = f", t = {args.timestep}" if method == "single" else ""
    title = f"{args.val} unseen scenes, {args.task}, {method}{at}"
    text = results_table(results, names, intrinsic, title)
    (out / "results.md").write_text(text + "\n")
    chosen = np.linspace(0, len(unseen) - 1, ROWS).astype(int).tolist()
    predicted = out / "predictions" / "lora" / args.task / "predicted"
    page = comparison_sheet([unseen[index] for index in chosen], intrinsic, predicted)
    page.save(out / "demo.png")
    print(f"\n{text}\n\nRGB | ground truth | label | prediction, {ROWS} unseen images: {out / 'demo.png'}")
    print(f"report: {out / 'report' / 'index.html'}\n{base.name} is a toy: Stable Diffusion is far more accurate")


def train(trainings: dict[str, Training], args: argparse.Namespace, diode: Path, out: Path) -> None:
    """Run the training script for all rows in parallel. They have the same VAE and share its latents."""
    commands = {}
    for name, training in trainings.items():
        words = ["-m", "accelerate.commands.launch", "--num_processes", 1, "--num_machines", 1]
        words += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        words += [ROOT / f"{SCRIPTS[args.method]}_diode_pseudo_{args.task}.py"]
        words += ["--pretrained_model_name_or_path", training.base, "--lora_targets", training.targets]
        words += ["--augment_from", DONOR] if args.method == "augunet" else ["--timestep", args.timestep]
        words += ["--train_data_dir", diode / INTRINSICS[args.task].truth_folder]
        words += ["--pseudo_root", diode / "pseudo" / args.task, "--output_dir", out / name, "--resolution", SIDE]
        words += ["--max_train_steps", args.steps, "--train_batch_size", BATCH, "--rank", RANK]
        words += ["--learning_rate", 4e-3, "--lr_scheduler", "linear", "--report_to", "none"]
        commands[name] = [*words, "--cache_dir", out / "latents"]
    at_once(commands, out)


def scoring(name: str, intrinsic: Intrinsic, diode: Path, out: Path) -> list[object]:
    """evaluate.py on one row's maps, into <out>/<name>.json."""
    words = [ROOT / "evaluate.py", "--task", intrinsic.name, *evaluation_flags(intrinsic)]
    words += ["--pred_dir", out / "predictions" / name / intrinsic.name / "predicted"]
    words += ["--gt_dir", diode / intrinsic.truth_folder / "val", "--by_stem", "--center_crop"]
    return [*words, "--output", out / f"{name}.json"] + (["--report", out / "report"] if name == "lora" else [])


def keep(lora: Path, base: Path, folder: Path) -> None:
    """Copy the LoRA in half precision, with AugUNet's conv_in. Its header names the models of this repository by their
    paths in it.
    """
    state, metadata, _ = read_lora(lora)
    inside = base.is_relative_to(ROOT)
    header = {**metadata, "base_model": base.relative_to(ROOT).as_posix() if inside else str(base)}
    if "augment_from" in header:
        header["augment_from"] = DONOR.relative_to(ROOT).as_posix()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half() for key, value in state.items()}, folder / SAFETENSORS, header)
    if (lora / CONV_IN).exists():
        shutil.copy(lora / CONV_IN, folder)


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def at_once(commands: dict[str, list[object]], out: Path) -> None:
    """Run all commands in parallel, sharing cores. The first shows its progress, the others write <out>/<name>.log."""
    threads = max(1, available_cores() // len(commands))
    first, *others = commands
    running = [begin(*commands[first], threads=threads)]
    running += [begin(*commands[name], log=out / f"{name}.log", threads=threads) for name in others]
    for process, log in running:
        if process.wait():
            for other, _ in running:
                other.terminate()
            sys.exit(log.read_text() if log else process.returncode)


def begin(*words: object, log: Path | None = None, threads: int | None = None) -> tuple[subprocess.Popen, Path | None]:
    """Print the command and start Python with these arguments in the project's root; its output goes into `log`."""
    command = [sys.executable, *map(str, words)]
    print("$ python " + shlex.join(command[1:]) + (f" > {log}" if log else ""), flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    output = log.open("w") if log else None
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output), log


def python(*words: object) -> None:
    """`begin` and wait. If it fails, stop the demo."""
    status = begin(*words)[0].wait()
    if status:
        sys.exit(status)


def row_names(base: str, rows: Collection[str]) -> dict[str, str]:
    """Row -> its name in the table, for the rows of this run, in the table's order."""
    names = {
        "lora": f"LoRA on all layers of {base}",
        "attention": f"LoRA on {base}'s attention layers alone (the paper's place)",
        "mean": "mean of the training labels, pixel by pixel",
        "random": "LoRA on all layers of a randomly initialised UNet",
        "untrained": "no training at all",
        "ceiling": "the label itself, through the VAE",
    }
    return {row: name for row, name in names.items() if row in rows}


def results_table(results: dict[str, dict], names: dict[str, str], intrinsic: Intrinsic, title: str) -> str:
    """The results by row as a Markdown table: each score with its 95 % interval."""
    lines = [f"| {title} | {' | '.join(intrinsic.scores.values())} |"]
    lines.append("|---" * (1 + len(intrinsic.scores)) + "|")
    for name, result in results.items():
        cells = []
        for metric in intrinsic.scores:
            low, high = result["intervals"][metric]
            cells.append(f"{result['metrics'][metric]:.3g} [{low:.3g}, {high:.3g}]")
        lines.append(f"| {names[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison_sheet(samples: list[dict], intrinsic: Intrinsic, folder: Path, zoom: int = 2) -> Image.Image:
    """RGB | ground truth | label | the map in `folder`, for each sample, enlarged."""
    rows = []
    for sample in samples:
        path = next(folder.glob(f"{Path(sample['stem']).name}_*.png"))
        image = np.array(Image.open(path).convert("RGB"))
        prediction = torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1
        truth = intrinsic.map_kind.truth_panel(sample["gt"], sample["valid"])
        row = strip([sample["rgb"], truth, sample["target"], prediction])
        rows.append(row.resize((row.width * zoom, row.height * zoom), Image.Resampling.NEAREST))
    return sheet(rows, ["RGB", "ground truth", "label", "prediction"])


def write_page(out: Path) -> None:
    """Write the tables of all runs in `out` as one Markdown file, and some rows of each run's maps as one image."""
    runs = {(task, method): out / f"{task}-{method}" for task in INTRINSICS for method in SCRIPTS}
    runs = {what: run for what, run in runs.items() if (run / "results.md").exists()}
    if not runs:
        sys.exit(f"error: {out} contains no run of the demo; make demo-all runs them all")
    (out / "all.md").write_text("\n".join((run / "results.md").read_text() for run in runs.values()))
    methods = [method for method in SCRIPTS if any(method == one for _, one in runs)]
    tasks = [task for task in INTRINSICS if any(task == one for one, _ in runs)]
    tiles = {what: Image.open(run / "demo.png") for what, run in runs.items()}
    width = next(iter(tiles.values())).width
    side = width // 4
    right, down = width + GAP, 2 * CAPTION_HEIGHT + len(PAGE_ROWS) * side + GAP
    page = Image.new("RGB", (len(methods) * right, len(tasks) * down), "white")
    draw = ImageDraw.Draw(page)
    for (task, method), tile in tiles.items():
        left, top = methods.index(method) * right, tasks.index(task) * down
        draw.text((left + 2, top + 1), f"{task}, {method}", fill="black")
        page.paste(tile.crop((0, 0, width, CAPTION_HEIGHT)), (left, top + CAPTION_HEIGHT))
        for place, row in enumerate(PAGE_ROWS):
            found = tile.crop((0, CAPTION_HEIGHT + row * side, width, CAPTION_HEIGHT + (row + 1) * side))
            page.paste(found, (left, top + 2 * CAPTION_HEIGHT + place * side))
    page.save(out / "all.jpg", quality=92)
    print(f"{len(runs)} runs: {out / 'all.md'} and {out / 'all.jpg'}")
