"""Does the uncertainty of several predictions show where a map is wrong? For normals, on images with ground truth.

    python -m studies.uncertainty --lora runs/ar-normal --data DIODE
    python -m studies.uncertainty --lora miniworld/mini-loras/augunet/normal --data DIODE --members 5

--lora is a LoRA of AugUNet, whose members start from different noise, or of an autoregressive generator, whose tokens
are sampled at --temperature. Prints the mean angle of one prediction (autoregressive: by the likeliest tokens), that
of the members' mean direction, and Spearman's rho of uncertainty and error over an image's pixels, each with its 95 %
bootstrap interval over images. A sheet shows some of the images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from generators.token_prediction import TokenPredictor
from studies.held_out import scenes
from studies.tables import spearman, with_interval
from utils.cli import Parser, expand, path_flag
from utils.errors import InputError, run
from utils.image_io.panels import sheet, strip, to_uint8
from utils.inference import Predictor
from utils.inference.job import Job, describe
from utils.inference.prediction import Prediction, uncertainty_picture
from utils.inference.run import Network
from utils.intrinsics import NORMAL
from utils.kinds.normals import angular_error
from utils.lora import read_lora

COLUMNS = ["RGB", "ground truth", "one", "merged", "uncertainty"]
SHOWN, ZOOM = 6, 2
TEMPERATURE = 1.0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m studies.uncertainty", description=__doc__)
    add = parser.add_argument
    add("--lora", type=expand, required=True, help="of normals, by AugUNet or an autoregressive generator")
    add("--data", type=path_flag, required=True, help="DIODE-like tree; its validation images are predicted")
    add("--members", type=int, default=8, help="predictions of each image")
    add("--temperature", type=float, default=TEMPERATURE, help="temperature of an autoregressive generator's tokens")
    add("--images", type=int, default=100, help="images to predict")
    add("--sheet", type=path_flag, default=Path("output/uncertainty.png"), help="image file with some of them")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    job = describe(args.lora, read_lora(args.lora).metadata.get("method"))
    if job.method not in ("augunet", "autoregressive") or job.intrinsic is not NORMAL:
        raise InputError(
            f"--lora={args.lora}: {job.intrinsic.name} by {job.method}; a LoRA for normals by AugUNet or tokens needed"
        )
    if job.method == "augunet" and args.temperature != TEMPERATURE:
        raise InputError("--temperature means nothing for AugUNet, whose members differ in their noise; leave it out")
    items = scenes(args.data, "normal", "val", job.trained_at)[: args.images]
    one = [found["normal"] for found in predictions(network(job, 1, 0.0), items)]
    merged = [found["normal"] for found in predictions(network(job, args.members, args.temperature), items)]
    errors = [[error(found, item) for found, item in zip(each, items, strict=True)] for each in (one, merged)]
    rho = [agreement(found, item) for found, item in zip(merged, items, strict=True)]
    print(f"{job.name}: {job.method}, {len(items)} images, {args.members} members")
    for title, values in (("one", errors[0]), ("merged", errors[1])):
        print(f"mean angle, {title}: {with_interval(np.array([values]))} degrees")
    print(f"Spearman's rho of uncertainty and error: {with_interval(np.array([rho]), 2)}")
    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    chosen = np.linspace(0, len(items) - 1, min(SHOWN, len(items))).astype(int)
    draw_sheet([items[i] for i in chosen], [one[i] for i in chosen], [merged[i] for i in chosen]).save(args.sheet)
    print(f"{' | '.join(COLUMNS)}: {args.sheet}")


def network(job: Job, members: int, temperature: float) -> Network:
    """The LoRA's own generator, which predicts each image `members` times and merges."""
    if job.method == "augunet":
        return Predictor(job.name, ensemble_size=members, batch_size=10, resolution=job.trained_at)
    return TokenPredictor(job, torch.device("cpu"), torch.float32, 20, temperature, members)


def predictions(predict: Network, items: Sequence[dict]) -> list[dict[str, Prediction]]:
    """Predictions of all items, `batch_size` at a time."""
    found = []
    for first in range(0, len(items), predict.batch_size):
        some = items[first : first + predict.batch_size]
        images = [predict.prepare(Image.fromarray(to_uint8(item["rgb"]))) for item in some]
        found += predict.predict(images, [item["stem"] for item in some])
    return found


def angles(found: Prediction, item: dict) -> np.ndarray:
    """Angular error (P,) in degrees of the valid pixels."""
    valid = item["valid"][0].numpy()
    return angular_error(found.values[valid], item["gt"].permute(1, 2, 0).numpy()[valid])


def error(found: Prediction, item: dict) -> float:
    return float(angles(found, item).mean())


def agreement(found: Prediction, item: dict) -> float:
    """Spearman's rho of uncertainty and error over the valid pixels."""
    assert found.uncertainty is not None
    return spearman(found.uncertainty.numpy()[item["valid"][0].numpy()], angles(found, item))


def draw_sheet(items: Sequence[dict], one: Sequence[Prediction], merged: Sequence[Prediction]) -> Image.Image:
    rows = []
    for item, first, both in zip(items, one, merged, strict=True):
        assert both.uncertainty is not None
        grey = torch.from_numpy(uncertainty_picture(both.uncertainty, NORMAL)) / 127.5 - 1
        truth = NORMAL.map_kind.truth_panel(item["gt"], item["valid"])
        row = strip([item["rgb"], truth, first.map.clamp(-1, 1), both.map, grey.expand(3, -1, -1)])
        rows.append(row.resize((row.width * ZOOM, row.height * ZOOM), Image.Resampling.NEAREST))
    return sheet(rows, COLUMNS)


if __name__ == "__main__":
    run(main)
