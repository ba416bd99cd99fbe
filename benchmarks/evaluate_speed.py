"""Time and memory of `evaluate.py --task normal --protocol pooled` on 654 images of 480x640, the size of NYUv2's test.

    python benchmarks/evaluate_speed.py [--images 100 300 654] [--distinct 16] [--workers 2] [--png]

Writes `--distinct` random pairs of float32 normals into a temporary folder and links them under more names, so the
disk's cache is warm. It measures decoding, angles, pooling and bootstrap. Each size runs in its own process, whose
peak resident memory the kernel reports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from utils.cli import Parser

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (480, 640)


def write_pair(folder: Path, index: int, png: bool) -> None:
    rng = np.random.default_rng(index)
    gt = rng.normal(size=(*SHAPE, 3)).astype(np.float32)
    gt /= np.linalg.norm(gt, axis=2, keepdims=True)
    pred = gt + rng.normal(scale=0.3, size=gt.shape).astype(np.float32)
    pred /= np.linalg.norm(pred, axis=2, keepdims=True)
    gt[:20] = 0  # some pixels without ground truth, as every real set has
    np.save(folder / f"gt{index}.npy", gt)
    if png:
        Image.fromarray(np.rint(255 * (pred + 1) / 2).astype(np.uint8)).save(folder / f"pred{index}.png")
    else:
        np.save(folder / f"pred{index}.npy", pred)


def link(source: Path, target: Path, images: int, distinct: int, png: bool) -> None:
    for side in ("gt", "pred"):
        suffix = ".png" if png and side == "pred" else ".npy"
        (target / side).mkdir(parents=True)
        for index in range(images):
            link = target / side / f"{index:05d}_normal{suffix}"
            link.symlink_to(source / f"{side}{index % distinct}{suffix}")


def measure(folder: Path, workers: int) -> tuple[float, float, dict]:
    """(seconds, peak resident MiB, result) of one run of the real command."""
    output = folder / "metrics.json"
    command = [sys.executable, str(ROOT / "evaluate.py"), "--task", "normal", "--protocol", "pooled"]
    command += ["--pred_dir", str(folder / "pred"), "--gt_dir", str(folder / "gt"), "--output", str(output)]
    command += ["--workers", str(workers)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"evaluate.py failed with status {status}")
    peak = usage.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
    return time.perf_counter() - start, peak, json.loads(output.read_text())


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 300, 654])
    parser.add_argument("--distinct", type=int, default=16, help="different pairs on disk, the others are links")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--png", action="store_true", help="8-bit .png predictions, as inference writes by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(args.distinct):
            write_pair(folder, index, args.png)
        print(f"{os.cpu_count()} cores, {args.workers} workers, predictions as .{'png' if args.png else 'npy'}")
        print(f"{'images':>7} {'seconds':>8} {'images/s':>9} {'peak MiB':>9} {'pool MiB':>9} {'rest MiB':>9}")
        for images in args.images:
            link(folder, folder / f"set{images}", images, args.distinct, args.png)
            seconds, peak, result = measure(folder / f"set{images}", args.workers)
            pool = 4 * result["pixels"] / 2**20  # what the exact pooled median needs: one float32 per valid pixel
            print(f"{images:7} {seconds:8.1f} {images / seconds:9.1f} {peak:9.0f} {pool:9.0f} {peak - pool:9.0f}")


if __name__ == "__main__":
    main()
