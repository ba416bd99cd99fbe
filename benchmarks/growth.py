"""Start-up and step time against the number of training images, and the cost of a checkpoint.

    python -m benchmarks.growth --work output/growth

The real script trains a tiny randomly initialised Stable Diffusion on a DIODE tree whose files are links to a few
rendered ones, with 1,000, 5,000 and 25,000 of them listed: the time from the launch to the first step with the latents
cached, and the median time of the steps after it. Then checkpoints of a LoRA of rank 8 on that UNet, on mini-sd's, and
on one of Stable Diffusion 1.5's size: their bytes and the time to write one.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from itertools import count as count_from
from pathlib import Path

import torch

from benchmarks.models import random_base
from benchmarks.side_by_side import format_spread, processor, spread
from miniworld import scenes
from miniworld.pretraining.random_sd import save_random_sd
from utils.base_model.stable_diffusion import load_base
from utils.cli import Parser, path_flag
from utils.lora import add_lora
from utils.paths import ROOT
from utils.training import checkpoint

SCRIPT = "sd_single_diode_pseudo_normal.py"
FILES = 100  # rendered; the others link to them
STEPS, SETTLED = 60, 5  # steps of a launch; the first ones, not timed


def parser() -> argparse.ArgumentParser:
    flags = Parser(prog="python -m benchmarks.growth", description=__doc__)
    add = flags.add_argument
    add("--work", type=path_flag, default=Path("output/growth"), help="data, models and runs (output/growth)")
    add("--counts", type=int, nargs="+", default=[1000, 5000, 25000], help="images listed (1000 5000 25000)")
    add("--rounds", type=int, default=3, help="launches of each, in turn (3)")
    add("--steps", type=int, default=STEPS, help=f"steps of each launch ({STEPS})")
    add("--bases", nargs="*", default=["tiny", "miniworld/mini-sd", "sd15"], help="bases of the checkpoints; "
        "sd15: Stable Diffusion 1.5's size, random weights (all three)")  # fmt: skip
    add("--output", type=path_flag, help="write the numbers as JSON")
    return flags


def make_tree(root: Path, count: int) -> None:
    """A DIODE tree that lists `count` training images: FILES rendered ones, and links to them in more scenes."""
    if (root / "diode_meta.json").exists():
        return
    words = ["--train", FILES, "--val", 4, "--size", "96x72", "--seed", 7]
    scenes.main([str(word) for word in ("--root", root, *words)])
    path = root / "diode_meta.json"
    meta = json.loads(path.read_text())
    rendered = {kind: dict(found) for kind, found in meta["train"].items()}
    listed = FILES
    for turn in count_from(1):
        for kind, found in rendered.items():
            for scene, scans in found.items():
                if listed >= count:
                    path.write_text(json.dumps(meta))
                    return
                copy = f"{scene}_{turn}"
                for folder in ("depths", "normals", "pseudo/normal"):
                    here = root / folder / "train" / kind
                    shutil.copytree(here / scene, here / copy, copy_function=os.link)
                meta["train"][kind][copy] = scans
                listed += sum(map(len, scans.values()))


def launch(work: Path, count: int, steps: int, name: str) -> dict[str, float]:
    """One run of the script: seconds from its launch to its first step, and of a step after it."""
    output, root = work / "runs" / name, work / f"DIODE-{count}"
    words = ["--pretrained_model_name_or_path", work / "tiny", "--train_data_dir", root / "normals"]
    words += ["--pseudo_root", root / "pseudo" / "normal", "--output_dir", output, "--resolution", 32]
    words += ["--num_train_imgs", count, "--cache_dir", work / "cache", "--max_train_steps", steps]
    words += ["--train_batch_size", 4, "--report_to", "none"]
    words += ["--validation_steps", 10**6, "--checkpointing_steps", 10**6]
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-u", SCRIPT, *map(str, words)]
    begun, ready = time.monotonic(), None
    with (
        (work / "log.txt").open("a") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        for line in process.stdout:
            if f"{count} training images, " in line:  # the last line before the first step
                ready = time.monotonic() - begun
    if process.returncode or ready is None:
        sys.exit(f"error: {' '.join(command)} failed: see {log.name}")
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    speeds = [record["samples_per_second"] for record in records if "samples_per_second" in record]
    return {"start": ready, "step": statistics.median(4 / speed for speed in speeds[SETTLED:])}


def weigh(base: str, tiny: Path, folder: Path, rounds: int) -> dict:
    """Bytes of a checkpoint of this base's LoRA, seconds to write one, and the base's own bytes."""
    torch.manual_seed(0)
    loaded = random_base("sd1") if base == "sd15" else load_base(str(tiny if base == "tiny" else base))
    unet, parts = loaded.unet, (loaded.text_encoder, loaded.vae, loaded.unet)
    parameters = add_lora(unet, 8)
    optimizer = torch.optim.AdamW(parameters, fused=True)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    times = []
    for step in range(1, rounds + 1):
        begun = time.monotonic()
        written = checkpoint.save(folder / Path(base).name, step, step, unet, {"optimizer": optimizer}, {}, {}, 1)
        times.append(time.monotonic() - begun)
    return {
        "base_bytes": sum(4 * p.numel() for part in parts for p in part.parameters()),
        "lora_bytes": sum(4 * parameter.numel() for parameter in parameters),
        "checkpoint_bytes": sum(file.stat().st_size for file in written.iterdir()),
        "seconds": spread(times),
    }


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    save_random_sd(args.work / "tiny", seed=0, channels=(32, 64, 64))
    runs: dict[int, list[dict]] = {count: [] for count in args.counts}
    for count in args.counts:
        make_tree(args.work / f"DIODE-{count}", count)
        launch(args.work, count, SETTLED + 1, f"{count}-cold")  # encodes
    for turn in range(args.rounds):
        for count in args.counts:
            runs[count].append(launch(args.work, count, args.steps, f"{count}-{turn}"))
    grown = {n: {key: spread([run[key] for run in found]) for key in ("start", "step")} for n, found in runs.items()}
    weights = {base: weigh(base, args.work / "tiny", args.work / "checkpoints", args.rounds) for base in args.bases}
    print("| images listed | launch to first step, s | step, ms |\n|---|---|---|")
    for count, found in grown.items():
        print(f"| {count:,} | {format_spread(found['start'])} | {format_spread(found['step'], 1000)} |")
    print("\n| base | its weights, MB | LoRA, MB | checkpoint, MB | to write it, ms |\n|---|---|---|---|---|")
    for base, found in weights.items():
        sizes = " | ".join(f"{found[f'{what}_bytes'] / 1e6:.3g}" for what in ("base", "lora", "checkpoint"))
        print(f"| {base} | {sizes} | {format_spread(found['seconds'], 1000)} |")
    print(f"\nMedians with their spread over {args.rounds}. {processor()}, {torch.get_num_threads()} threads.")
    if args.output:
        result = {"machine": processor(), "images": grown, "checkpoints": weights}
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
