"""Train the project's own small StyleGAN2 from scratch, on rendered pictures alone.

    python -m miniworld.pretrain_gan --out miniworld/mini-gan            # train, save, measure
    python -m miniworld.pretrain_gan --out miniworld/mini-gan --report   # measure what lies there

Interrupted, the same command goes on where it was cut off.
"""

import argparse
import os
from pathlib import Path

import torch

from miniworld.pretraining.gan import build_gan, gan_stage
from miniworld.pretraining.picture_cache import cached_pictures
from miniworld.pretraining.stage import run_stage
from utils.cli import Parser, path_flag
from utils.errors import run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m miniworld.pretrain_gan", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--out", type=path_flag, default=Path("miniworld/mini-gan"), help="folder of the generator")
    add("--work", type=path_flag, default=Path("output/pretrain"), help="checkpoints, logs, sample sheets, scenes")
    add("--steps", type=int, default=10000, help="of both networks")
    add("--batch", type=int, default=16, help="pictures a step, a multiple of 4")
    add("--scenes", type=int, default=65536, help="training pictures")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes that render them")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    rgb, _ = cached_pictures(args.work / "scenes", args.seed, args.scenes, 64, args.workers)
    torch.manual_seed(args.seed)
    networks = build_gan()
    run_stage(
        gan_stage(
            *networks, rgb, args.work / "gan", args.batch, steps=args.steps, learning_rate=2e-3, ema_decay=0.998
        )
    )


if __name__ == "__main__":
    run(main)
