"""Train the project's own small Stable Diffusion from scratch, on rendered pictures and their captions alone.

    python -m miniworld.pretrain --out miniworld/mini-sd            # train what is not trained yet, save, measure
    python -m miniworld.pretrain --out miniworld/mini-sd --report   # measure what lies there

The stages, each a module of `miniworld.pretraining`: the VAE, then its decoder alone (`vae`); text encoder and UNet
together (`generator`); and a UNet that also reads a picture (`editor`), saved beside --out as mini-ip2p. Checkpoints,
logs, sample sheets and the UNet's snapshots along the training lie in --work. Interrupted, the same command goes on
where it was cut off.
"""

import argparse
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch

from miniworld.pretraining.codec import build_codec, codec_stage, decoder_stage, enlarge
from miniworld.pretraining.editor import build_editor, editor_stage
from miniworld.pretraining.generator import build_generator, encode_pictures, generator_stage
from miniworld.pretraining.model_folder import save_editor, save_generator
from miniworld.pretraining.picture_cache import cached_pictures
from miniworld.pretraining.report import report
from miniworld.pretraining.stage import run_stage
from utils.cli import Parser, path_flag
from utils.errors import run

SIZE = 64  # pixels
SCALING_FACTOR = 0.18215  # Stable Diffusion's
STAGES = ("vae", "decoder", "unet", "ip2p")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m miniworld.pretrain",
        description=__doc__.split("\n\n")[0],
    )
    add = parser.add_argument
    add(
        "--out",
        type=path_flag,
        default=Path("miniworld/mini-sd"),
        help="Stable Diffusion folder; mini-ip2p lies beside",
    )
    add(
        "--work",
        type=path_flag,
        default=Path("output/pretrain"),
        help="checkpoints, logs, sample sheets, cached scenes",
    )
    add("--report", action="store_true", help="train nothing: measure what lies in --out and --work")
    add(
        "--sheet", type=path_flag, default=Path("docs/mini-sd-samples.png"), help="contact sheet that the report draws"
    )
    add("--until", choices=STAGES, default="ip2p", help="the last stage to run")
    add("--vae_steps", type=int, default=4500, help="steps of the codec")
    add("--decoder_steps", type=int, default=8000, help="steps of the codec's decoder alone, in two cycles")
    add("--unet_steps", type=int, default=5000, help="steps of text encoder and UNet")
    add("--ip2p_steps", type=int, default=600, help="steps of the UNet that reads a picture")
    add("--vae_scenes", type=int, default=4096, help="pictures for the codec")
    add("--scenes", type=int, default=24576, help="pictures for the UNets")
    add("--codec_batch", type=int, default=16, help="pictures a step of the codec, crops of half the side at first")
    add("--batch", type=int, default=32, help="pictures a step of the UNets")
    add("--full_precision", action="store_true", help="float32 instead of bfloat16 autocast")
    add("--workers", type=int, default=os.cpu_count(), help="processes that render")
    add("--seed", type=int, default=0, help="of pictures, weights, batches and noise")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # a missing safety checker is on purpose
    if not args.report:
        train(args)
    if args.report or args.until == "ip2p":
        report(args.out, args.work, args.sheet, args.seed)


def train(args: argparse.Namespace) -> None:
    """The stages, each from where it stands, and the two folders."""
    half = not args.full_precision
    scenes = args.work / "scenes"
    torch.manual_seed(args.seed)
    vae, parts = build_codec(), build_generator()

    rgb, _ = cached_pictures(scenes, args.seed, args.vae_scenes, SIZE, args.workers)
    settings = {"steps": args.vae_steps, "learning_rate": 1e-3, "seed": args.seed}
    run_stage(codec_stage(vae, rgb, args.work / "vae", args.codec_batch, half, **settings))
    if args.until == "vae":
        return

    settings = {"steps": args.decoder_steps, "learning_rate": 5e-4, "seed": args.seed, "cycles": 2}
    run_stage(decoder_stage(vae, rgb, args.work / "decoder", args.codec_batch, half, **settings))
    vae.requires_grad_(False)
    if args.until == "decoder":
        return

    rgb, captions = cached_pictures(scenes, args.seed, args.scenes, SIZE, args.workers)
    data = encode_pictures(vae, rgb, captions, parts.tokenizer, args.work / "latents", half)
    factor = data.scale / SCALING_FACTOR
    enlarge(vae, factor)
    data = replace(data, mean=factor * data.mean, std=factor * data.std, scale=SCALING_FACTOR)
    vae.register_to_config(scaling_factor=SCALING_FACTOR)
    settings = {"steps": args.unet_steps, "learning_rate": 5e-4, "seed": args.seed, "ema_decay": 0.999}
    settings |= {"snapshots": snapshot_steps(args.unet_steps)}
    run_stage(generator_stage(parts, data, vae, args.work / "unet", args.batch, half, **settings))
    parts.text_encoder.requires_grad_(False)
    save_generator(args.out, parts, vae)
    if args.until == "unet":
        return

    editor = build_editor(parts.unet)
    settings = {"steps": args.ip2p_steps, "learning_rate": 3e-4, "seed": args.seed, "ema_decay": 0.99}
    run_stage(editor_stage(editor, parts, vae, rgb, data, args.work / "ip2p", args.batch, half, **settings))
    save_editor(args.out.parent / "mini-ip2p", args.out, editor)


def snapshot_steps(total: int) -> tuple[int, ...]:
    """Steps whose UNet is kept: from 64 on, each sqrt(2) times the one before, because what is learnt first is learnt
    fast; and the last."""
    steps = (round(64 * 2 ** (index / 2)) for index in range(40))
    return (*(step for step in steps if step < total), total)


if __name__ == "__main__":
    run(main)
