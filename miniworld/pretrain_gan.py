"""Train the project's own small StyleGAN2 from scratch, on rendered images only.

    python -m miniworld.pretrain_gan --out miniworld/mini-gan            # train, save, measure
    python -m miniworld.pretrain_gan --out miniworld/mini-gan --report   # measure what is there

After an interruption the same command resumes.
"""

import argparse
import os
from pathlib import Path

import torch

from generators.stylegan2 import load_gan, save_gan
from miniworld.pretraining.gan import CHANNELS, DEPTH, GAMMA, LAZY, NAME, STYLE_DIM, build_gan, gan_stage, samples
from miniworld.pretraining.image_cache import cached_images
from miniworld.pretraining.report import DRAWN
from miniworld.pretraining.stage import run_stage, snapshot_steps
from miniworld.pretraining.unconditional import add_flags, draw_sheet, sample_gates, write_report
from utils.cli import Parser, path_flag
from utils.errors import run

SIZE, CEILING = (
    64,
    70.0,
)  # pixels; limit of the distance, which was 198 for mini-sd before its training and 46.6 after it
TEXT = """A StyleGAN2 of 64 x 64 pixels (features per resolution {generator}; w of {style_dim} numbers, mapping of
{depth} layers; without noise), trained from scratch on rendered rooms and yards by `python -m miniworld.pretrain_gan`:
non-saturating logistic loss, R1 every {lazy} steps (gamma {gamma:g}), Adam (0, 0.99), moving averages. No normal,
depth, albedo or shading map was used. `gan_pseudo.py` trains LoRAs on it. Weights in fp16."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m miniworld.pretrain_gan", description=__doc__.split("\n\n")[0])
    add_flags(parser, Path("miniworld/mini-gan"), steps=6500, batch=16, scenes=65536)
    parser.add_argument("--sheet", type=path_flag, default=Path("docs/mini_gan.jpg"), help="sheet of samples")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="rendering processes")
    parser.only("workers", lambda a: not a.report, "with --report, which trains nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.report:
        train(args)
    images = samples(load_gan(str(args.out)).network, DRAWN, args.seed)
    text = TEXT.format(generator=CHANNELS, style_dim=STYLE_DIM, depth=DEPTH, gamma=GAMMA, lazy=LAZY)
    gates = sample_gates(images, args.seed, CEILING)
    write_report(args.out, args.work, NAME, gates, text)
    draw_sheet(images, args.sheet)


def train(args: argparse.Namespace) -> None:
    """Train what is missing, and save the generator's moving average."""
    rgb, _ = cached_images(args.work / "scenes", args.seed, args.scenes, SIZE, args.workers)
    torch.manual_seed(args.seed)
    settings = {"steps": args.steps, "learning_rate": 2e-3, "seed": args.seed, "ema_decay": 0.998}
    settings |= {"snapshots": snapshot_steps(args.steps)}
    stage = gan_stage(*build_gan(SIZE), rgb, args.work / NAME, args.batch, **settings)
    save_gan(args.out, run_stage(stage)["generator"])


if __name__ == "__main__":
    run(main)
