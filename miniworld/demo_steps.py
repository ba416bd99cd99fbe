"""The demo's steps, one after the other, each by the command that a user with DIODE and Stable Diffusion runs."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from dataloaders.diode import Diode
from miniworld.demo_page import compare, row_names, table
from miniworld.references import random_control, untrained_lora, write_mean_label, write_vae_ceiling
from miniworld.tasks import evaluation_flags
from utils.intrinsics import INTRINSICS, Intrinsic
from utils.lora import CONV_IN, SAFETENSORS, read_lora

ROOT = Path(__file__).resolve().parent.parent
DONOR = ROOT / "miniworld" / "mini-ip2p"
SCRIPTS = {"single": "sd_single", "augunet": "augunet"}
INFERENCE = {"single": "inference_sd_single.py", "augunet": "inference_augunet.py"}
SIDE, ROWS, RANK = 64, 6, 16
BATCH = 8


@dataclass(frozen=True)
class Training:
    """One of the trainings that run at once: a LoRA on these layers of this base."""

    base: Path
    targets: str


def run_demo(args: argparse.Namespace) -> None:
    """Render, train, predict, score: all of it in `args.out`. `args`: as `miniworld.demo` parses them."""
    intrinsic, method, base = INTRINSICS[args.task], args.method, args.base.resolve()
    diode, out = args.out.resolve() / "DIODE", args.out.resolve() / f"{args.task}-{method}"

    step("1/4  render scenes in DIODE's layout, with labels")
    size = ("--train", args.train, "--val", args.val, "--size", "128x96", "--truth", "--seed", args.seed)
    python("-m", "miniworld.scenes", "--root", diode, *size)
    shutil.rmtree(out, ignore_errors=True)  # only now: scenes of other settings end the run, and keep the old results

    step(f"2/4  train LoRAs for {args.steps} steps of {BATCH} labels, at once: on the base, and for comparison")
    trainings = {"lora": Training(base, "all")}
    if not args.only_lora:
        trainings["random"] = Training(random_control(base, out / "random-sd"), "all")
        if method == "single":
            trainings["attention"] = Training(base, "attention")
    train(trainings, args, diode, out)

    step("3/4  predict what training has not seen")
    train_set, unseen = (
        Diode(intrinsic, diode / intrinsic.truth_folder, diode / "pseudo" / args.task, split, resolution=SIDE)
        for split in ("train", "val")
    )
    pictures = out / "unseen"
    pictures.mkdir()
    for stem in unseen.stems:
        shutil.copy(unseen.rgb_root / f"{stem}.png", pictures)
    header = {"task": args.task, "method": {"single": "single-step"}.get(method, method), "steps": 0}
    header |= {"timestep": args.timestep} if method == "single" else {}
    untrained_lora(base, DONOR if method == "augunet" else None, out / "untrained", header)
    inference = {}
    for name in (*trainings, "untrained"):
        words = [ROOT / INFERENCE[method], "--lora", out / name, "--input_dir", pictures]
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
    found = {name: json.loads((out / f"{name}.json").read_text()) for name in names}
    if args.keep:
        keep(out / "lora", base, args.keep)
    at = f", t = {args.timestep}" if method == "single" else ""
    title = f"{args.val} unseen scenes, {args.task}, {method}{at}"
    text = table(found, names, intrinsic, title)
    (out / "results.md").write_text(text + "\n")
    chosen = np.linspace(0, len(unseen) - 1, ROWS).astype(int).tolist()
    predicted = out / "predictions" / "lora" / args.task / "predicted"
    page = compare([unseen[index] for index in chosen], intrinsic, predicted)
    page.save(out / "demo.png")
    print(f"\n{text}\n\nRGB | ground truth | label | prediction, {ROWS} unseen images: {out / 'demo.png'}")
    print(f"report: {out / 'report' / 'index.html'}\n{base.name} shows the way, not Stable Diffusion's quality")


def train(trainings: dict[str, Training], args: argparse.Namespace, diode: Path, out: Path) -> None:
    """Run the training script for all rows at once. They have one VAE, and share its latents."""
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
    """Copy the LoRA in half precision, with AugUNet's conv_in. Its header names models of this repository
    by their place in it.
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
    """Run all of them, sharing the cores: the first shows its progress, the others write <out>/<name>.log."""
    threads = max(1, available_cores() // len(commands))
    first, *others = commands
    running = [begin(*commands[first], threads=threads)]
    running += [begin(*commands[name], log=out / f"{name}.log", threads=threads) for name in others]
    for process, log in running:
        if process.wait():
            for other, _ in running:
                other.terminate()
            sys.exit(log.read_text() if log else process.returncode)


def available_cores() -> int:
    """Those that this process may use, where the system says so; else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin(*words: object, log: Path | None = None, threads: int | None = None) -> tuple[subprocess.Popen, Path | None]:
    """Start Python with these arguments in the project's root, showing the command; its output goes into `log`."""
    command = [sys.executable, *map(str, words)]
    print("$ python " + shlex.join(command[1:]) + (f" > {log}" if log else ""), flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    output = log.open("w") if log else None
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output), log


def python(*words: object) -> None:
    """`begin` and wait; stop the demo if it fails."""
    status = begin(*words)[0].wait()
    if status:
        sys.exit(status)
