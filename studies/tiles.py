"""Peak memory of a large image in tiles, and the steps in the map at tile borders.

    python -m studies.tiles                                                     # mini-sd
    python -m studies.tiles --lora path/to/lora --base sd15.safetensors --tile 512 --scenes 0

memory  the largest resident memory of `inference_sd_single.py` on one image of --size with --tile, and on one of a
        tile's size: the whole process, with PyTorch, the base, and reading and writing of files
seams   unseen rendered scenes of two by three tiles, predicted in tiles and as a whole: the largest step of the map
        from one pixel to the next where a tile begins or ends, as a ratio to the largest step on the same lines, and
        anywhere, of the map predicted as a whole; the median over the scenes with the 5th and the 95th percentile

The image for the memory is random but smooth.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from miniworld.scenes import parse_size, render
from utils.cli import Parser, expand
from utils.inference import Predictor
from utils.inference.tiles import starts
from utils.paths import ROOT

UNSEEN = 50_000  # seed of the first scene, of no training


def smooth_image(size: tuple[int, int]) -> Image.Image:
    """Random colours; `size` is (width, height)."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def peak(image: Path, *words: object) -> float:
    """GB of resident memory that inference of this image takes at most."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            ROOT / "inference_sd_single.py",
            "--input_dir",
            image,
            "--output_dir",
            out,
            *words,
        ]
        child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"error: inference of {image} failed")
    return usage.ru_maxrss * 1024 / 1e9


def steps(values: np.ndarray, lines: tuple[list[int], list[int]]) -> tuple[float, float]:
    """Of a map (H,W,...): the largest difference of neighbours across these (rows, columns), and anywhere."""
    across, anywhere = [], []
    for axis in (0, 1):
        found = np.abs(np.diff(values.astype(np.float64), axis=axis))
        across.append(np.take(found, [line - 1 for line in lines[axis]], axis).max())
        anywhere.append(found.max())
    return max(across), max(anywhere)


def borders(length: int, tile: int, overlap: int, step: int) -> list[int]:
    """Positions where tiles begin or end on a side, without its own ends."""
    begins = starts(length, tile, overlap, step, wrap=False)
    return sorted({place for begin in begins for place in (begin, begin + tile)} - {0, length})


def seams(lora: Path, tile: int, overlap: int, count: int, **options) -> np.ndarray:
    """(count,2): the largest step across tiles' borders over that on the same lines, and anywhere, untiled."""
    shape = (2 * tile, 3 * tile)
    whole = Predictor(lora, resolution=2 * tile, **options)
    tiled = Predictor(lora, resolution=2 * tile, tile=tile, overlap=overlap, **options)
    lines = tuple(borders(length, tile, overlap, tiled.factor) for length in shape)
    found = []
    for index in range(count):
        image = Image.fromarray(render(UNSEEN + index, ("room", "yard")[index % 2], *shape).rgb)
        at_once, merged = (predict(image)[whole.jobs[0].intrinsic.name].values for predict in (whole, tiled))
        found.append([steps(merged, lines)[0] / value for value in steps(at_once, lines)])
    return np.array(found)


def main() -> None:
    parser = Parser(prog="python -m studies.tiles", description=__doc__)
    add = parser.add_argument
    add("--lora", nargs="+", type=expand, default=[str(ROOT / "miniworld/mini-loras" / task) for task in (
        "normal", "depth", "albedo", "shading")], help="the first one's memory, all of their seams")  # fmt: skip
    add("--base", type=expand, help="its base model (default: as the LoRA's file says)")
    add("--tile", type=int, default=64, help="side of a tile in pixels (64)")
    add("--size", type=parse_size, default=parse_size("4096x3072"), help="size of the large image (4096x3072)")
    add("--scenes", type=int, default=20, help="for the seams (20); 0: memory alone")
    args = parser.parse_args()
    base = ["--pretrained_model_name_or_path", args.base] if args.base else []

    with tempfile.TemporaryDirectory() as folder:
        image, one = Path(folder) / "large.png", Path(folder) / "tile.png"
        smooth_image(args.size).save(image)
        smooth_image((args.tile, args.tile)).save(one)
        words = ["--lora", args.lora[0], *base, "--tile", args.tile, "--device", "cpu"]
        large, small = (peak(file, *words) for file in (image, one))
    print(f"memory: {large:.2f} GB, one tile {small:.2f} GB, ratio {large / small:.2f}", flush=True)
    for lora in args.lora if args.scenes else []:
        for overlap in (args.tile // 4, args.tile // 2):
            found = seams(Path(lora), args.tile, overlap, args.scenes, device="cpu")
            low, middle, high = np.percentile(found, [5, 50, 95], axis=0)
            ratios = ", ".join(f"{m:.2f} [{a:.2f}, {b:.2f}]" for a, m, b in zip(low, middle, high))
            print(
                f"seams: {Path(lora).name}, overlap {overlap}: to the same lines and to anywhere {ratios}", flush=True
            )


if __name__ == "__main__":
    main()
