"""Train the project's own teacher, a small supervised network for all four intrinsics, on rendered scenes.

    python -m miniworld.pretrain_teacher --out miniworld/mini-teacher

Interrupted, the same command goes on where it was cut off.
"""

import argparse
from pathlib import Path

import torch

from miniworld.pretraining.stage import run_stage
from miniworld.pretraining.teacher import NAME, build_teacher, cached_maps, save_teacher, teacher_stage
from miniworld.pretraining.teacher_gates import teacher_gates
from miniworld.pretraining.unconditional import add_flags, report
from utils.cli import Parser
from utils.errors import run

SIZE = 64
TEXT = """A supervised network for normals, depth, albedo and shading together: diffusers' UNet2DModel, trained by
`python -m miniworld.pretrain_teacher` on rendered rooms and yards of 64 x 64 pixels with their exact labels. It labels
a GAN's images (`gan_pseudo.py`) and any other image: `pseudo_label.py --teacher miniworld/mini-teacher`. It was
trained only on its own small world. Weights in fp16."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m miniworld.pretrain_teacher", description=__doc__.split("\n\n")[0])
    add_flags(parser, Path("miniworld/mini-teacher"), steps=2000, batch=16, scenes=16384)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.report:
        train(args)
    report(args.out, args.work, NAME, teacher_gates(args.out, args.seed), TEXT)


def train(args: argparse.Namespace) -> None:
    """Train what is not trained yet, and save it."""
    maps = cached_maps(args.work / "maps", args.seed, args.scenes, SIZE)
    torch.manual_seed(args.seed)
    settings = {"steps": args.steps, "learning_rate": 2e-3, "seed": args.seed, "ema_decay": 0.995}
    stage = teacher_stage(build_teacher(SIZE), maps, args.work / NAME, args.batch, **settings)
    save_teacher(args.out, run_stage(stage)["teacher"], SIZE)


if __name__ == "__main__":
    run(main)
