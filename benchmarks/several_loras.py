"""Prediction with four LoRAs on one base, together against one after the other, in turns.

    python -m benchmarks.several_loras --rounds 3

runs      the commands: `predict.py` with four LoRAs, against four runs of `inference_sd_single.py` with one each
computed  the same without starting Python and loading the base: one predictor of four LoRAs, against four of one

Images are random but smooth, 4:3. Times are medians with their spread over --rounds; ratios are of the rounds.
"""

import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from benchmarks.inference import random_images
from benchmarks.side_by_side import format_spread, processor, seconds, spread
from utils.cli import Parser
from utils.inference import Predictor
from utils.intrinsics import INTRINSICS
from utils.paths import ROOT

LORAS = [ROOT / "miniworld" / "mini-loras" / name for name in INTRINSICS]


def runs(folder: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """Two commands: all four LoRAs together, and one after the other."""

    def run(script: str, *words: object) -> None:
        command = [sys.executable, str(ROOT / script), *map(str, words), "--output_dir", tempfile.mkdtemp()]
        subprocess.run(command, check=True, capture_output=True)

    def one_by_one() -> None:
        for lora in LORAS:
            run("inference_sd_single.py", "--lora", lora, "--input_dir", folder)

    return lambda: run("predict.py", folder), one_by_one


def computed(folder: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """The same as functions of loaded models."""
    together, alone = Predictor(LORAS), [Predictor(lora) for lora in LORAS]
    images = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]

    def predict(*predictors: Predictor) -> None:
        for predictor in predictors:
            for image in images:
                predictor(image)

    return lambda: predict(together), lambda: predict(*alone)


def main() -> None:
    parser = Parser(prog="python -m benchmarks.several_loras", description=__doc__)
    parser.add_argument("--images", type=int, default=16, help="images in the folder (16)")
    parser.add_argument("--resolution", type=int, default=64, help="their short side in pixels (64)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs that are timed, after one that is not (5)")
    args = parser.parse_args()
    files, _ = random_images(Namespace(images=args.images, resolution=args.resolution))
    print(f"{processor()}, {torch.get_num_threads()} threads, {args.images} images of {args.resolution} px")
    for name, make in (("computed", computed), ("runs", runs)):
        sides = make(files[0].parent)
        times = [[seconds(side, "cpu") for side in sides] for _ in range(args.rounds + 1)][1:]
        together, alone = ([pair[i] for pair in times] for i in range(2))
        found = [format_spread(spread(values)) for values in (together, alone, [b / a for a, b in times])]
        print("{}: together {} s, one by one {} s, ratio {}".format(name, *found), flush=True)


if __name__ == "__main__":
    main()
