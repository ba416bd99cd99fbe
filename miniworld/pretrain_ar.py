"""Train the project's own small autoregressive generator, on rendered pictures alone.

    python -m miniworld.pretrain_ar --out miniworld/mini-ar

Interrupted, the same command goes on where it was cut off.
"""

import argparse
import os
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from miniworld.pretraining.autoregressive import all_tokens, build_transformer, build_vq, transformer_stage
from miniworld.pretraining.picture_cache import cached_pictures
from miniworld.pretraining.stage import run_stage
from utils.cli import Parser, path_flag
from utils.errors import run

SIZE = 64


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m miniworld.pretrain_ar", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--out", type=path_flag, default=Path("miniworld/mini-ar"), help="folder of the generator")
    add("--vae_from", type=path_flag, default=Path("miniworld/mini-sd"), help="whose VAE the codec takes its layers from")
    add("--work", type=path_flag, default=Path("output/pretrain"), help="checkpoints, logs, sample sheets, scenes")
    add("--steps", type=int, default=4000, help="of the transformer")
    add("--batch", type=int, default=8)
    add("--scenes", type=int, default=65536)
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes that render them")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    rgb, _ = cached_pictures(args.work / "scenes", args.seed, args.scenes, SIZE, args.workers)
    vae = AutoencoderKL.from_pretrained(args.vae_from, subfolder="vae").float()
    vq = build_vq(vae, rgb, args.seed)
    deepcopy(vq).half().save_pretrained(args.out / "vq")
    tokens = all_tokens(vq, rgb)
    torch.manual_seed(args.seed)
    settings = {"steps": args.steps, "learning_rate": 2e-3, "seed": args.seed, "ema_decay": 0.995}
    stage = transformer_stage(build_transformer(tokens.shape[1]), vq, tokens, args.work / "ar", args.batch, **settings)
    run_stage(stage)["transformer"].half().save_pretrained(args.out / "transformer")


if __name__ == "__main__":
    run(main)
