"""Train the project's own small Stable Diffusion from scratch, on rendered images and their captions only.

    python -m miniworld.pretrain --out miniworld/mini-sd            # train what is missing, save, measure
    python -m miniworld.pretrain --out miniworld/mini-sd --report   # measure what is there
    python -m miniworld.pretrain --continue_from miniworld/mini-sd --out output/mini-sd        # train it further
    python -m miniworld.pretrain --velocity_from miniworld/mini-sd --out miniworld/mini-sd-2     # to predict velocity
    python -m miniworld.pretrain --stage flow     # a flow transformer on mini-sd's VAE and text encoder: mini-flow
    python -m miniworld.pretrain --stage tiny     # a tiny autoencoder for mini-sd, for previews: mini-sd-tiny-vae

The stages, each a module of `miniworld.pretraining`, are the VAE, then its decoder alone (`vae`), text encoder and
UNet together (`generator`), and a UNet with an image as a second input (`editor`), saved next to --out as mini-ip2p.
An existing generator can be trained further, with its own editor, or turned into one that predicts velocity
(`continued`). A flow transformer learns from an existing generator's latents and text encoder (`flow`), and a tiny
autoencoder from its VAE (`tiny`). Checkpoints,
logs, sample sheets and snapshots are written to --work. After an interruption the same command resumes, and with a
number of steps that is already done it writes the folder from the last checkpoint.
"""

import argparse
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from miniworld.pretraining.continued import MORE, VELOCITY, continued_stage, latents_of, velocity_stage
from miniworld.pretraining.editor import build_editor, editor_stage
from miniworld.pretraining.flow import NAME as FLOW
from miniworld.pretraining.flow import build_flow, cached_text, flow_stage, with_projection
from miniworld.pretraining.flow_report import report_flow
from miniworld.pretraining.generator import Latents, Parts, build_generator, encode_images, generator_stage
from miniworld.pretraining.image_cache import cached_images
from miniworld.pretraining.model_folder import (
    EDITOR,
    load_generator,
    save_editor,
    save_flow,
    save_generator,
    save_velocity,
)
from miniworld.pretraining.report import report, write_velocity_card
from miniworld.pretraining.stage import run_stage, snapshot_steps
from miniworld.pretraining.tiny import NAME as TINY
from miniworld.pretraining.tiny import build_tiny_vae, report_tiny, save_tiny, tiny_stage
from miniworld.pretraining.vae import build_mini_vae, decoder_stage, enlarge, vae_stage
from utils.cli import Parser, path_flag
from utils.errors import InputError, run
from utils.system.compute import warn_of_slow_bf16

SIZE = 64  # pixels
SCALING_FACTOR = 0.18215  # Stable Diffusion's
STAGES = ("vae", "decoder", "unet", "ip2p")
ALONE = {FLOW: "mini-flow", TINY: "mini-sd-tiny-vae"}  # --stage -> the default of --out in miniworld


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m miniworld.pretrain",
        description=__doc__.split("\n\n")[0],
    )
    add = parser.add_argument
    add(
        "--out",
        type=path_flag,
        help="Stable Diffusion folder; mini-ip2p is written next to it (default: miniworld/mini-sd; with --stage flow "
        "miniworld/mini-flow, with --stage tiny miniworld/mini-sd-tiny-vae)",
    )
    add(
        "--work",
        type=path_flag,
        default=Path("output/pretrain"),
        help="checkpoints, logs, sample sheets, cached scenes",
    )
    add("--continue_from", type=path_flag, metavar="FOLDER", help="train this generator for --unet_steps more, then "
        "an editor for it; --out must be in another folder")  # fmt: skip
    add("--velocity_from", type=path_flag, metavar="FOLDER", help="train this generator to predict velocity, for "
        "--velocity_steps; --out borrows its VAE by relative links")  # fmt: skip
    add("--stage", choices=list(ALONE), help="train this stage alone: a flow transformer, for --flow_steps; --out "
        "borrows --generator's VAE and tokenizer by relative links; or a tiny VAE, for --tiny_steps")  # fmt: skip
    add("--generator", type=path_flag, default=Path("miniworld/mini-sd"), metavar="FOLDER", help="generator whose "
        "latents and text encoder --stage flow, and whose VAE --stage tiny is trained on")  # fmt: skip
    add("--report", action="store_true", help="train nothing: measure what is in --out and --work")
    add(
        "--sheet",
        type=path_flag,
        help="contact sheet of the report (default: docs/<name of --out>-samples.png)",
    )
    add("--until", choices=STAGES, default="ip2p", help="the last stage to run")
    add("--vae_steps", type=int, default=4500, help="steps of the VAE")
    add("--decoder_steps", type=int, default=8000, help="steps of the VAE's decoder alone, in two cycles")
    add("--unet_steps", type=int, default=5000, help="steps of text encoder and UNet")
    add("--ip2p_steps", type=int, default=600, help="steps of the editor, the UNet with an image as input")
    add("--velocity_steps", type=int, default=700, help="steps of a generator that learns to predict velocity")
    add("--flow_steps", type=int, default=5000, help="steps of the flow transformer")
    add("--tiny_steps", type=int, default=3000, help="steps of the tiny autoencoder")
    add("--vae_scenes", type=int, default=4096, help="images for the VAE")
    add("--scenes", type=int, default=24576, help="images for the UNets")
    add("--vae_batch", type=int, default=16, help="images per step of the VAE; at first, crops of half the side")
    add("--batch", type=int, default=32, help="images per step of the UNets")
    add("--full_precision", action="store_true", help="float32 instead of bfloat16 autocast")
    add("--workers", type=int, default=os.cpu_count(), help="rendering processes")
    add("--seed", type=int, default=0, help="seed of images, weights, batches and noise")
    trained = (
        "unet_steps vae_steps decoder_steps ip2p_steps velocity_steps flow_steps tiny_steps vae_scenes scenes "
        "vae_batch batch"
    )
    parser.only(
        f"{trained} until full_precision workers", lambda a: not a.report, "with --report, which trains nothing"
    )
    scratch = "with --continue_from, --velocity_from and --stage"
    parser.only("vae_steps decoder_steps", _from_scratch, scratch)
    parser.only("vae_scenes vae_batch", lambda a: _from_scratch(a) or a.stage == TINY, f"{scratch} flow")
    parser.only(
        "unet_steps ip2p_steps until", lambda a: not (a.velocity_from or a.stage), "with --velocity_from and --stage"
    )
    parser.only("velocity_steps", lambda a: a.velocity_from, "without --velocity_from")
    parser.only("generator", lambda a: a.stage, "without --stage")
    parser.only("flow_steps", lambda a: a.stage == FLOW, "without --stage flow")
    parser.only("tiny_steps", lambda a: a.stage == TINY, "without --stage tiny")
    parser.only("scenes batch sheet", lambda a: a.stage != TINY, "with --stage tiny")
    reported = "with --until before ip2p, after which nothing is reported"
    parser.only("sheet", lambda a: a.report or a.velocity_from or a.until == "ip2p", reported)
    args = parser.parse_args(argv)
    args.out = args.out or Path("miniworld") / ALONE.get(args.stage, "mini-sd")
    check(args)
    args.sheet = args.sheet or Path("docs") / f"{args.out.name}-samples.png"
    return args


def _from_scratch(args: argparse.Namespace) -> bool:
    return not (args.continue_from or args.velocity_from or args.stage)


def check(args: argparse.Namespace) -> None:
    """InputError for flags that exclude each other, or a generator that does not exist."""
    chosen = [f"--{name}" for name in ("continue_from", "velocity_from", "stage") if getattr(args, name)]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} exclude each other: leave one out")
    for name in ("continue_from", "velocity_from", "generator"):
        folder = getattr(args, name) if name != "generator" or args.stage else None
        if folder and not (folder / "model_index.json").is_file():
            raise InputError(f"--{name}={folder}: not a Stable Diffusion folder (it has no model_index.json)")
    if args.continue_from and args.continue_from.resolve().parent == args.out.resolve().parent:
        raise InputError(f"--out={args.out}: mini-ip2p next to --continue_from would be replaced; name another "
            "folder, such as output/mini-sd")  # fmt: skip
    if args.velocity_from and args.velocity_from.resolve() == args.out.resolve():
        raise InputError(f"--out={args.out}: is --velocity_from's folder, which must not change; name a new one")
    if args.stage and args.generator.resolve() == args.out.resolve():
        raise InputError(f"--out={args.out}: is --generator's folder, which must not change; name a new one")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.getLogger("diffusers").setLevel(
        logging.ERROR
    )  # it would warn of the missing safety checker, which is intended
    if not args.full_precision:
        warn_of_slow_bf16(torch.bfloat16, "cpu", "--full_precision")
    if not args.report:
        if args.stage:
            {FLOW: train_flow, TINY: train_tiny}[args.stage](args)
        elif args.velocity_from:
            train_velocity(args)
        elif args.continue_from:
            train_further(args)
        else:
            train(args)
    if args.stage == TINY:
        report_tiny(args.out, args.generator, args.seed)
    elif args.stage == FLOW:
        report_flow(args.out, args.generator, args.work, args.sheet, args.seed)
    elif args.report or args.velocity_from or args.until == "ip2p":
        report(args.out, args.work, args.sheet, args.seed, MORE if args.continue_from else "unet")


def train(args: argparse.Namespace) -> None:
    """Run or resume each stage, and write the two folders."""
    half = not args.full_precision
    scenes = args.work / "scenes"
    torch.manual_seed(args.seed)
    vae, parts = build_mini_vae(), build_generator()

    rgb, _ = cached_images(scenes, args.seed, args.vae_scenes, SIZE, args.workers)
    settings = {"steps": args.vae_steps, "learning_rate": 1e-3, "seed": args.seed}
    run_stage(vae_stage(vae, rgb, args.work / "vae", args.vae_batch, half, **settings))
    if args.until == "vae":
        return

    settings = {"steps": args.decoder_steps, "learning_rate": 5e-4, "seed": args.seed, "cycles": 2}
    run_stage(decoder_stage(vae, rgb, args.work / "decoder", args.vae_batch, half, **settings))
    vae.requires_grad_(False)
    if args.until == "decoder":
        return

    rgb, captions = cached_images(scenes, args.seed, args.scenes, SIZE, args.workers)
    data = encode_images(vae, rgb, captions, parts.tokenizer, args.work / "latents", half)
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

    train_editor(args, parts, vae, rgb, data, "ip2p")


def train_further(args: argparse.Namespace) -> None:
    """Train an existing generator for more steps, then an editor that starts from the result."""
    parts, vae, rgb, data = open_generator(args.continue_from, args)
    settings = {"steps": args.unet_steps, "learning_rate": 5e-4, "seed": args.seed, "ema_decay": 0.999}
    settings |= {"snapshots": snapshot_steps(args.unet_steps)}
    run_stage(continued_stage(parts, data, vae, args.work / MORE, args.batch, not args.full_precision, **settings))
    parts.text_encoder.requires_grad_(False)
    save_generator(args.out, parts, vae)
    if args.until != "unet":
        train_editor(args, parts, vae, rgb, data, f"ip2p-{MORE}")


def train_velocity(args: argparse.Namespace) -> None:
    """Train an existing generator to predict velocity."""
    parts, vae, _, data = open_generator(args.velocity_from, args)
    settings = {"steps": args.velocity_steps, "learning_rate": 5e-4, "seed": args.seed, "ema_decay": 0.995}
    settings |= {"snapshots": snapshot_steps(args.velocity_steps), "save_every": 50}
    folder, half = args.work / VELOCITY, not args.full_precision
    stage = velocity_stage(parts, data, vae, folder, args.batch, half, **settings)
    run_stage(stage)
    save_velocity(args.out, args.velocity_from, parts, vae)
    write_velocity_card(args.out, args.velocity_from, args.batch, stage)


def train_flow(args: argparse.Namespace) -> None:
    """Train a flow transformer on an existing generator's latents and text encoder."""
    parts, vae, _, data = open_generator(args.generator, args)
    encoder = with_projection(parts.text_encoder)
    text = cached_text(encoder, data, args.work / "latents")
    torch.manual_seed(args.seed)
    transformer = build_flow(encoder.config.hidden_size, parts.unet.config.sample_size)
    settings = {"steps": args.flow_steps, "learning_rate": 1e-3, "seed": args.seed, "ema_decay": 0.999}
    settings |= {"snapshots": snapshot_steps(args.flow_steps), "save_every": 50}
    folder, half = args.work / FLOW, not args.full_precision
    run_stage(flow_stage(transformer, data, text, vae, folder, args.batch, half, **settings))
    save_flow(args.out, args.generator, transformer, encoder, parts, vae)


def train_tiny(args: argparse.Namespace) -> None:
    """Train a tiny autoencoder on an existing generator's VAE."""
    vae = load_generator(args.generator)[1]
    rgb, _ = cached_images(args.work / "scenes", args.seed, args.vae_scenes, SIZE, args.workers)
    torch.manual_seed(args.seed)
    tiny = build_tiny_vae(vae)
    settings = {"steps": args.tiny_steps, "learning_rate": 2e-3, "seed": args.seed}
    run_stage(tiny_stage(tiny, vae, rgb, args.work / TINY, args.vae_batch, not args.full_precision, **settings))
    save_tiny(args.out, args.generator, tiny, args.tiny_steps)


def open_generator(folder: Path, args: argparse.Namespace) -> tuple[Parts, AutoencoderKL, np.ndarray, Latents]:
    """A trained generator, its VAE, and the images (N,S,S,3) uint8 with their latents."""
    parts, vae = load_generator(folder)
    rgb, captions = cached_images(args.work / "scenes", args.seed, args.scenes, SIZE, args.workers)
    return parts, vae, rgb, latents_of(parts, vae, rgb, captions, args.work / "latents", not args.full_precision)


def train_editor(
    args: argparse.Namespace, parts: Parts, vae: AutoencoderKL, rgb: np.ndarray, data: Latents, name: str
) -> None:
    """Train the UNet with an image as input, starting from the generator. name: its folder in --work."""
    editor = build_editor(parts.unet)
    settings = {"steps": args.ip2p_steps, "learning_rate": 3e-4, "seed": args.seed, "ema_decay": 0.99}
    half = not args.full_precision
    run_stage(editor_stage(editor, parts, vae, rgb, data, args.work / name, args.batch, half, **settings))
    save_editor(args.out.parent / EDITOR, args.out, editor)


if __name__ == "__main__":
    run(main)
