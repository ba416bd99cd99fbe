"""Train the project's own small autoregressive generator, on rendered images only.

    python -m miniworld.pretrain_ar --out miniworld/mini-ar

After an interruption the same command resumes.
"""

import argparse
import os
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, VQModel
from transformers import LlamaForCausalLM

from miniworld.pretraining.autoregressive import (
    CODES,
    HEADS,
    LAYERS,
    NAME,
    WIDTH,
    build_transformer,
    build_vq,
    cached_tokens,
    sample,
    transformer_stage,
    vq_gates,
)
from miniworld.pretraining.image_cache import cached_images
from miniworld.pretraining.report import DRAWN
from miniworld.pretraining.stage import run_stage, snapshot_steps
from miniworld.pretraining.unconditional import add_flags, draw_sheet, sample_gates, write_report
from utils.cli import Parser, path_flag
from utils.errors import run
from utils.training.args import RECOMMENDED

SIZE = 64
TEXT = """A generator of 64 x 64 pixels that works token by token, by `python -m miniworld.pretrain_ar`:
images as 16 x 16 tokens of {codes}, and a decoder-only transformer ({layers} layers, {heads}
heads, {width} wide) that was trained to predict the next token of rendered rooms and yards. The VQ model is
mini-sd's VAE with a codebook: k-means over its latents of images in many colours. No normal,
depth, albedo or shading map was used. `ar_pseudo.py` trains LoRAs on it. Weights in fp16."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m miniworld.pretrain_ar", description=__doc__.split("\n\n")[0])
    add_flags(parser, Path("miniworld/mini-ar"), steps=3000, batch=16, scenes=16384)
    mini_sd = Path("miniworld/mini-sd")
    parser.add_argument(
        "--vae_from", type=path_flag, default=mini_sd, help="model folder whose VAE becomes the VQ model"
    )
    parser.add_argument("--sheet", type=path_flag, default=Path("docs/mini_ar.jpg"), help="sheet of samples")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="rendering processes")
    parser.only("workers vae_from", lambda a: not a.report, "with --report, which trains nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.report:
        train(args)
    vq = VQModel.from_pretrained(args.out / "vq").float()
    whole = LlamaForCausalLM.from_pretrained(args.out / "transformer").float().eval()
    images = sample(whole, vq, DRAWN, args.seed)
    gates = [*vq_gates(vq, args.seed), *sample_gates(images, args.seed)]
    text = TEXT.format(codes=CODES, layers=LAYERS, width=WIDTH, heads=HEADS)
    write_report(args.out, args.work, NAME, gates, text)
    draw_sheet(images, args.sheet)


def train(args: argparse.Namespace) -> None:
    """Train what is missing, and save it."""
    rgb, _ = cached_images(args.work / "scenes", args.seed, args.scenes, SIZE, args.workers)
    vq = build_vq(AutoencoderKL.from_pretrained(args.vae_from, subfolder="vae").float(), rgb, args.seed)
    deepcopy(vq).half().save_pretrained(args.out / "vq")
    tokens = cached_tokens(vq, rgb, args.work / NAME)
    torch.manual_seed(args.seed)
    settings = {"steps": args.steps, "learning_rate": 2e-3, "seed": args.seed, "ema_decay": 0.995}
    settings |= {"snapshots": snapshot_steps(args.steps)}
    stage = transformer_stage(build_transformer(tokens.shape[1]), vq, tokens, args.work / NAME, args.batch, **settings)
    run_stage(stage)["transformer"].half().save_pretrained(args.out / "transformer")
    (args.out / RECOMMENDED).write_text('{"learning_rate": 0.002, "resolution": 64}\n')


if __name__ == "__main__":
    run(main)
