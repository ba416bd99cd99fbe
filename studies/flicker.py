"""Flicker of the prediction of a still scene: frames of one photograph that differ by camera noise only.

    python -m studies.flicker
    python -m studies.flicker --lora path/to/single path/to/augunet --frames 8

Prints the mean change from one frame to the next, over pixels and frames, with the least and the largest of the
frames: for normals the angle in degrees, for other maps thousandths of the range from the map's 2nd to its 98th
percentile. AugUNet is run twice: with the same noise for all frames, as in inference of a video, and with separate
noise for each.
"""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.side_by_side import format_spread, spread
from utils.cli import Parser, expand, path_flag
from utils.inference import Predictor
from utils.inference.prediction import Prediction
from utils.kinds.normals import angular_error
from utils.paths import ROOT

SIGMA = 2.0  # grey levels of 255: a phone by daylight


def noisy(path: Path, count: int) -> list[Image.Image]:
    """`count` frames of a still photograph with Gaussian noise of SIGMA, rounded to 8 bits."""
    rng, still = np.random.default_rng(0), np.asarray(Image.open(path).convert("RGB"), np.float64)
    return [Image.fromarray(np.clip(still + rng.normal(0, SIGMA, still.shape), 0, 255).round().astype(np.uint8))
            for _ in range(count)]  # fmt: skip


def change(one: Prediction, following: Prediction) -> float:
    """Mean over pixels, in the units of the module's docstring."""
    a, b = (prediction.values.astype(np.float64) for prediction in (one, following))
    if one.intrinsic.map_kind.has_axes:
        return float(angular_error(a, b).mean())
    low, high = np.percentile(a, [2, 98])
    return float(1000 * np.abs(a - b).mean() / (high - low))


def main() -> None:
    parser = Parser(prog="python -m studies.flicker", description=__doc__)
    add = parser.add_argument
    add("--lora", nargs="+", type=expand, default=[str(ROOT / "miniworld/mini-loras/normal")], help="any method")
    add("--image", type=path_flag, default=ROOT / "examples" / "coffee.jpg", help="the still scene")
    add("--frames", type=int, default=6, help="frames of the film")
    args = parser.parse_args()
    images = noisy(args.image, args.frames)
    for lora in args.lora:
        predictor = Predictor(lora)
        (job,) = predictor.jobs
        for own in (False, True) if job.method == "augunet" else (False,):
            names = [str(i) if own else args.image.name for i in range(len(images))]
            maps = [predictor([image], [name])[0][job.intrinsic.name] for image, name in zip(images, names)]
            found = spread([change(a, b) for a, b in itertools.pairwise(maps)])
            how = {"augunet": f", {'separate noise for each frame' if own else 'one noise for all frames'}"}
            print(f"{job.name}: {job.method}{how.get(job.method, '')}: {format_spread(found)}", flush=True)


if __name__ == "__main__":
    main()
