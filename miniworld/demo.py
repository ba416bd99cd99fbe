"""The project's whole way in a few minutes: render scenes, train a LoRA, draw normals of unseen pictures, look.

    python -m miniworld.demo --out demo

Every step runs the same command that a user with DIODE and Stable Diffusion runs.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataloaders.diode import DiodeNormals
from utils.visualize import normals_picture, sheet, strip

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "miniworld" / "mini-sd"
SIDE, ROWS = 64, 6


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: 300)")
    args = parser.parse_args(argv)
    out = args.out.resolve()
    diode, run = out / "DIODE", out / "run"

    step("1/4  render scenes in DIODE's layout, with pseudo labels")
    python("-m", "miniworld.scenes", "--root", diode, "--train", 300, "--val", 100, "--size", "128x96")

    step(f"2/4  train a LoRA on mini-sd for {args.steps} steps")
    shutil.rmtree(run, ignore_errors=True)
    python(
        "-m", "accelerate.commands.launch", "--num_processes", 1, "--num_machines", 1, "--mixed_precision", "no",
        "--dynamo_backend", "no", ROOT / "sd_single_diode_pseudo_normal.py",
        "--pretrained_model_name_or_path", BASE, "--train_data_dir", diode / "normals",
        "--pseudo_root", diode / "pseudo" / "normal", "--output_dir", run, "--resolution", SIDE,
        "--max_train_steps", args.steps, "--rank", 16, "--train_batch_size", 16, "--learning_rate", 4e-3,
        "--lr_scheduler", "linear", "--report_to", "none",
    )  # fmt: skip

    step("3/4  draw normals of pictures that training has not seen")
    unseen = DiodeNormals(diode / "normals", diode / "pseudo" / "normal", "val", resolution=SIDE)
    pictures, drawn = out / "unseen", out / "output"
    for folder in (pictures, drawn):
        shutil.rmtree(folder, ignore_errors=True)
    pictures.mkdir()
    for stem in unseen.stems:
        shutil.copy(unseen.rgb_root / f"{stem}.png", pictures)
    python(
        ROOT / "inference_sd_single.py", "--lora", run, "--input_dir", pictures, "--output_dir", drawn,
        "--batch_size", 4, "--npy",
    )  # fmt: skip

    step("4/4  score them against ground truth, beside the constant mean normal")
    python(
        ROOT / "evaluate.py", "--task", "normal", "--protocol", "pooled", "--pred_dir", drawn / "normal" / "predicted",
        "--gt_dir", diode / "normals" / "val", "--by_stem", "--center_crop", "--baseline", "mean",
        "--output", out / "metrics.json", "--report", out / "report",
    )  # fmt: skip

    chosen = np.linspace(0, len(unseen) - 1, ROWS).astype(int).tolist()
    page = compare([unseen[index] for index in chosen], drawn / "normal" / "predicted")
    page.save(out / "demo.png")
    print(f"\nRGB | ground truth | label | prediction, {ROWS} unseen pictures: {out / 'demo.png'}")
    print(
        "mini-sd is a small generator trained on rendered pictures: this shows the way, not Stable Diffusion's quality"
    )


def compare(samples: list[dict], folder: Path, zoom: int = 2) -> Image.Image:
    """RGB | ground truth | label | what lies in `folder` for each sample, enlarged."""
    rows = []
    for sample in samples:
        picture = np.asarray(Image.open(folder / f"{Path(sample['stem']).name}_normal.png"))
        drawing = torch.from_numpy(picture.copy()).permute(2, 0, 1) / 127.5 - 1
        row = strip([sample["rgb"], normals_picture(sample["gt"], sample["valid"]), sample["target"], drawing])
        rows.append(row.resize((row.width * zoom, row.height * zoom), Image.Resampling.NEAREST))
    return sheet(rows, ["RGB", "ground truth", "label", "prediction"])


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def python(*words: object) -> None:
    """Run Python with these arguments from the project's root, showing the command; stop the demo if it fails."""
    command = [sys.executable, *map(str, words)]
    print("$ python " + shlex.join(command[1:]), flush=True)
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
