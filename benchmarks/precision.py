"""Accuracy of training in bf16, and on a network in 8 or 4 bits, against fp32: the demo's training, on the CPU.

    python -m benchmarks.precision
    python -m benchmarks.precision --ways fp32 int8 nf4 --base miniworld/mini-flow --seeds 0

For each seed, the same training in fp32, in bf16 with autocast (as on a CPU) and in bf16 without it (as on a GPU: the
frozen network in bf16, the LoRA's fp32 weights cast layer by layer). int8 and nf4 are the linear layers' precision in
training and prediction, and compute in fp32. A seed sets the LoRA's first weights, the order of the batches and all
noise. Reported are the differences to fp32 of the mean loss of the first 100 steps, and of the demo's own metric: the
mean angle on unseen scenes, predicted in fp32. Intervals are Student's, over the seeds; one seed has none. Of int8 and
nf4 also the error of the network's output without a LoRA: |difference| / |output in fp32|, over 16 unseen scenes.
"""

import argparse
import importlib
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np

from miniworld import scenes
from miniworld.demo_steps import BATCH, RANK, SIDE
from utils.cli import Parser, path_flag

SCRIPT = "sd_single_diode_pseudo_normal"
WAYS = {  # mixed precision, autocast, precision of the linear layers
    "fp32": ("no", True, None),
    "bf16, autocast": ("bf16", True, None),
    "bf16, no autocast": ("bf16", False, None),
    "int8": ("no", True, "int8"),
    "nf4": ("no", True, "nf4"),
}
FIRST = 100  # steps whose losses are compared
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # number of seeds -> 97.5 % quantile of Student's t


def parser() -> argparse.ArgumentParser:
    flags = Parser(prog="python -m benchmarks.precision", description=__doc__)
    add = flags.add_argument
    add("--work", type=path_flag, default=Path("output/precision"), help="scenes and runs (output/precision)")
    add("--base", type=path_flag, default=Path("miniworld/mini-sd"), help="Stable Diffusion folder (mini-sd)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the training, one to six (0 1 2)")
    add("--ways", choices=WAYS, nargs="+", default=list(WAYS), help="trainings next to fp32 (all)")
    add("--steps", type=int, default=100, help=f"steps of {BATCH} labels (100; the demo has 300)")
    return flags


def train_and_score(args: argparse.Namespace, seed: int, way: str) -> None:
    """One training, its predictions and their score, in a process of its own; finished runs are kept."""
    from utils.training import loop

    precision, autocast, layers = WAYS[way]
    quantised = ["--base_precision", layers] if layers else []
    loop.autocasts = lambda device_type: autocast
    root, out = args.work / "DIODE", folder_of(args.work, seed, way)
    words = ["--pretrained_model_name_or_path", args.base, "--lora_targets", "all", *quantised]
    words += ["--train_data_dir", root / "normals", "--pseudo_root", root / "pseudo" / "normal", "--output_dir", out]
    words += ["--resolution", SIDE, "--max_train_steps", args.steps, "--train_batch_size", BATCH, "--rank", RANK]
    words += ["--learning_rate", 4e-3, "--lr_scheduler", "linear", "--report_to", "none", "--seed", seed]
    words += ["--mixed_precision", precision, "--validation_steps", 0, "--cache_dir", args.work / "latents"]
    call(SCRIPT, words)
    unseen = root / "depths" / "val"
    words = ["--lora", out, "--input_dir", unseen, "--output_dir", out / "maps", "--npy", "--batch_size", 10]
    call("inference_sd_single", [*words, "--resolution", SIDE, "--center_crop", *quantised])
    words = ["--task", "normal", "--pred_dir", out / "maps" / "normal" / "predicted", "--by_stem", "--center_crop"]
    call(
        "evaluate", [*words, "--gt_dir", root / "normals" / "val", "--protocol", "pooled", "--output", result_of(out)]
    )


def call(script: str, words: list[object]) -> None:
    """A script's main in this process."""
    if status := importlib.import_module(script).main([str(word) for word in words]):
        sys.exit(status)


def folder_of(work: Path, seed: int, way: str) -> Path:
    return work / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}"


def result_of(folder: Path) -> Path:
    return folder / "scores.json"


def measures(folder: Path) -> tuple[float, float]:
    """(mean loss of the first steps, mean angle in degrees) of a finished run."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [record["train_loss"] for record in records if "train_loss" in record]
    return float(np.mean(losses[:FIRST])), json.loads(result_of(folder).read_text())["metrics"]["mean"]


def output_error(args: argparse.Namespace, precision: str) -> float:
    """|output - output in fp32| / |output in fp32| of the network without a LoRA, over 16 unseen scenes."""
    import torch

    from utils.base_model.families import open_base
    from utils.image_io.images import Crop, read_rgb

    files = sorted((args.work / "DIODE" / "depths" / "val").rglob("*.png"))[:16]
    images = [read_rgb(file) for file in files]
    rgb = torch.stack([Crop.of(*image.size, SIDE).picture(image) for image in images])
    outputs = []
    for each in (None, precision):
        base = open_base(str(args.base), precision=each)
        z, time = base.scaled(base.latent_mode(rgb)), 400 if base.steps else None
        with torch.no_grad():
            outputs.append(base.predict(base.network, z, base.timestep(time), base.encode_prompt("surface normal")))
    return ((outputs[1] - outputs[0]).norm() / outputs[0].norm()).item()


def difference(values: np.ndarray) -> str:
    """Mean of paired differences, with their 95 % interval where there are several."""
    if len(values) == 1:
        return f"{values[0]:+.2g}"
    half = STUDENT[len(values)] * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.2g} [{values.mean() - half:+.2g}, {values.mean() + half:+.2g}]"


def main(argv: list[str] | None = None) -> None:
    flags = parser()
    args = flags.parse_args(argv)
    if len(args.seeds) not in (1, *STUDENT):
        flags.error(f"--seeds: {len(args.seeds)} given; pass one to six")
    ways = ["fp32", *(way for way in WAYS if way in args.ways and way != "fp32")]
    words = ["--root", args.work / "DIODE", "--train", 300, "--val", 100, "--size", "128x96", "--truth", "--seed", 0]
    scenes.main([str(word) for word in words])
    for seed in args.seeds:
        for way in ways:
            if not result_of(folder_of(args.work, seed, way)).exists():
                process = multiprocessing.get_context("spawn").Process(target=train_and_score, args=(args, seed, way))
                process.start()
                process.join()
                if process.exitcode:
                    sys.exit(f"error: seed {seed} in {way} failed")
    found = {way: np.array([measures(folder_of(args.work, seed, way)) for seed in args.seeds]) for way in ways}
    print("| training | error of an output | loss, 100 steps | to fp32 | mean angle, degrees | to fp32 |")
    print("|---" * 6 + "|")
    for way, values in found.items():
        loss, angle = values.mean(0)
        more = ["", ""] if way == "fp32" else [difference(column) for column in (values - found["fp32"]).T]
        error = f"{100 * output_error(args, way):.2f} %" if WAYS[way][2] else ""
        print(f"| {way} | {error} | {loss:.4f} | {more[0]} | {angle:.2f} | {more[1]} |")


if __name__ == "__main__":
    main()
