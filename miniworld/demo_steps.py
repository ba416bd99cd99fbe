"""The demo's steps, each by the command that a user with DIODE and Stable Diffusion runs, and the demo's tables."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tqdm.auto import tqdm

from dataloaders.diode import Diode
from miniworld.references import evaluation_flags, random_control, untrained_lora, write_mean_label, write_vae_ceiling
from utils.base_model.names import toy_remark
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
TAIL = 20  # lines of a failed command's log that are printed
# The random row of `python -m miniworld.demo --all`, with 95 % intervals; another CPU differs by about 0.1
RECORDED = {
    "metrics": {"mean": 22.8, "median": 15.2},
    "intervals": {"mean": [21.3, 24.3], "median": [13.2, 17.3]},
}


@dataclass(frozen=True)
class Training:
    """One of the trainings that run in parallel: a LoRA on these layers of this base."""

    base: Path
    targets: str


def run_demo(args: argparse.Namespace) -> None:
    """Render, train, predict and score in `args.out`. `args`: as `miniworld.demo` parses them."""
    transformers.utils.logging.disable_progress_bar()  # the demo's own bars are enough
    intrinsic, method, base = INTRINSICS[args.task], args.method, args.base.resolve()
    diode, out = args.out.resolve() / "DIODE", args.out.resolve() / f"{args.task}-{method}"

    step("1/4  render scenes in DIODE's layout, with labels")
    size = ("--train", args.train, "--val", args.val, "--size", "128x96", "--truth", "--seed", args.seed)
    python("-m", "miniworld.scenes", "--root", diode, *size)
    shutil.rmtree(
        out, ignore_errors=True
    )  # only now: scenes of other settings end the run above, and the old results are kept

    step(f"2/4  train LoRAs for {args.steps} steps of {BATCH} labels, in parallel: on all layers, and for comparison")
    trainings = {"lora": Training(base, "all")}
    if not args.only_lora:
        if args.all:
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
    at_once(inference, out, "predicting")
    write_mean_label(train_set, unseen.stems, intrinsic, out / "predictions" / "mean")
    write_vae_ceiling(base, unseen, intrinsic, out / "predictions" / "ceiling")

    step("4/4  score")
    names = row_names(base.name, (*trainings, "mean", "untrained", "ceiling"))
    at_once({f"score-{name}": scoring(name, intrinsic, diode, out) for name in names}, out, "scoring")
    results = {name: json.loads((out / f"{name}.json").read_text()) for name in names}
    if args.show_recorded and not args.all:
        names["random"] = f"{ROW_NAMES['random']} (recorded: `python -m miniworld.demo --all`)"
        results = {row: RECORDED if row == "random" else results[row] for row in ROW_NAMES if row in names}
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
    picture, report = (os.path.relpath(out / name) for name in ("demo.png", "report/index.html"))
    print(f"\n{text}\n\nRGB | ground truth | label | prediction, {ROWS} unseen images: {picture}\nreport: {report}")
    if remark := toy_remark(base):
        print(remark)


def train(trainings: dict[str, Training], args: argparse.Namespace, diode: Path, out: Path) -> None:
    """Run the training script for all rows in parallel. They have the same VAE and share its latents."""
    commands = {}
    for name, training in trainings.items():
        words = [ROOT / f"{SCRIPTS[args.method]}_diode_pseudo_{args.task}.py"]
        words += ["--pretrained_model_name_or_path", training.base, "--lora_targets", training.targets]
        words += ["--augment_from", DONOR] if args.method == "augunet" else ["--timestep", args.timestep]
        words += ["--train_data_dir", diode / INTRINSICS[args.task].truth_folder]
        words += ["--pseudo_root", diode / "pseudo" / args.task, "--output_dir", out / name, "--resolution", SIDE]
        words += ["--max_train_steps", args.steps, "--train_batch_size", BATCH, "--rank", RANK]
        words += ["--learning_rate", 4e-3, "--lr_scheduler", "linear", "--report_to", "none"]
        commands[name] = [*words, "--cache_dir", out / "latents"]
    at_once(commands, out, "training", args.steps)


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


def at_once(commands: dict[str, list[object]], out: Path, what: str, steps: int | None = None) -> None:
    """Run all commands in parallel, sharing cores, each with its output in <out>/<name>.log. The first is printed.

    Bars show how far they are: with `steps`, one for each, which counts its training steps; else one for all. If a
    command fails, the others end, and the end of its log is printed.
    """
    threads, logs = max(1, available_cores() // len(commands)), {name: out / f"{name}.log" for name in commands}
    show(next(iter(commands.values())))
    if len(commands) > 1:
        print(
            f"  and {len(commands) - 1} more like it; logs: {os.path.relpath(out)}/{{{','.join(commands)}}}.log",
            flush=True,
        )
    out.mkdir(parents=True, exist_ok=True)
    running = {name: begin(words, logs[name], threads) for name, words in commands.items()}
    titles = {name: f"{what} {name}" for name in commands} if steps else {"": what}
    bars = [
        tqdm(total=steps or len(commands), desc=title, position=place, unit="step" if steps else "run", disable=None)
        for place, title in enumerate(titles.values())
    ]
    busy = True
    while busy:
        busy = any(process.poll() is None for process in running.values())
        ended = sum(process.poll() is not None for process in running.values())
        done = [steps_in(logs[name], steps) for name in commands] if steps else [ended]
        for bar, count in zip(bars, done, strict=True):
            bar.update(count - bar.n)
        failed = next((name for name, process in running.items() if process.poll()), None)
        if failed:
            for process in running.values():
                process.terminate()
            for bar in bars:
                bar.close()
            lines = re.split("[\r\n]+", logs[failed].read_text())[-TAIL:]
            sys.exit("\n".join([*lines, f"error: {os.path.relpath(logs[failed])} is the log of what failed"]))
        time.sleep(0.2)
    for bar in bars:
        bar.close()


def steps_in(log: Path, steps: int) -> int:
    """How far a training is, by the last bar in its log that counts its steps."""
    found = re.findall(rf"training:[^\r\n]*? (\d+)/{steps} \[", log.read_text(errors="replace"))
    return int(found[-1]) if found else 0


def begin(words: Sequence[object], log: Path | None = None, threads: int | None = None) -> subprocess.Popen:
    """Start Python with these arguments in the project's root; its output goes into `log`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    output = log.open("w") if log else None
    command = [sys.executable, *map(typed, words)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)


def python(*words: object) -> None:
    """Print the command, `begin` it and wait. If it fails, so does this process."""
    show(words)
    if status := begin(words).wait():
        sys.exit(status)


def show(words: Sequence[object], end: str = "") -> None:
    """Print a command as it is typed in the project's root."""
    print("$ python " + shlex.join(map(typed, words)) + end, flush=True)


def typed(word: object) -> str:
    """An argument of a command: paths below the project's root relative to it."""
    inside = isinstance(word, Path) and word.is_absolute() and word.is_relative_to(ROOT)
    return str(word.relative_to(ROOT) if inside else word)  # type: ignore[attr-defined]


ROW_NAMES = {
    "lora": "LoRA on all layers of {base}",
    "attention": "LoRA on {base}'s attention layers alone (the paper's place)",
    "mean": "mean of the training labels, pixel by pixel",
    "random": "LoRA on all layers of a randomly initialised UNet",
    "untrained": "no training at all",
    "ceiling": "the label itself, through the VAE",
}


def row_names(base: str, rows: Collection[str]) -> dict[str, str]:
    """Row -> its name in the table, for the rows of this run, in the table's order."""
    return {row: name.format(base=base) for row, name in ROW_NAMES.items() if row in rows}


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
