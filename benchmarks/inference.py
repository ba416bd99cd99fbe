"""Prediction of a folder of images: the released computation and ours, interleaved in one process.

    python -m benchmarks.inference                                       # Stable Diffusion 1.5's size, random weights
    python -m benchmarks.inference --base miniworld/mini-sd --resolution 64 --batch 16 --images 64
    python -m benchmarks.inference --batch 16 --images 64 --dtype bf16   # on a GPU
    python -m benchmarks.inference --images 1 --vae random --dtype bf16  # ours decodes with an autoencoder like TAESD

released  the paper's script: fp32, an image at a time, the prompt through the text encoder for each, the LoRA as
          separate matrices next to the frozen ones, attention as matrix products and a softmax; reading, predicting
          and writing one after the other
ours      `utils.inference.run.predict_all`, which both inference scripts run: the LoRA fused into the weights, the
          prompt's states computed once, fused attention, --batch images at a time, files read and written in parallel

Both predict the same PNG files with the same LoRA and write PNG files.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderTiny
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from benchmarks.models import base_for, prompt_states, prompt_tokens
from benchmarks.side_by_side import DTYPES, compare, parser_of, set_compile
from utils.base_model.tiny_vae import load_tiny, put_in_decoder, put_in_encoder
from utils.image_io.images import Crop, read_rgb
from utils.inference.output import Output
from utils.inference.predictor import Adapter, Engine
from utils.inference.run import predict_all
from utils.inference.view import View
from utils.intrinsics import NORMAL
from utils.lora import add_lora, fuse_lora, lora_parameters
from utils.objectives import SingleStep


def released_pass(args: argparse.Namespace, device: str) -> Callable[[], None]:
    """The released computation, restated from a description of its code: a function that predicts all images."""
    base = base_for(args, device)
    text_encoder, vae, unet = (part.to(device) for part in (base.text_encoder, base.vae, base.unet))
    unet.set_attn_processor(AttnProcessor())
    a_lora(unet, args.rank)
    files, out = random_images(args)
    tokens = prompt_tokens(text_encoder, 1)
    t = torch.full((1,), 999, device=device)
    scale = vae.config.scaling_factor

    @torch.no_grad()
    def predict() -> None:
        for file in files:
            picture = read_rgb(file)
            rgb = Crop.of(*picture.size, args.resolution).picture(picture)[None].to(device)
            text = text_encoder(tokens)[0]
            z = unet(scale * vae.encode(rgb).latent_dist.mode(), t, text).sample
            prediction = vae.decode(z / scale).sample[0].cpu()
            Image.fromarray(NORMAL.map_kind.image8(prediction)).save(out / file.name)

    return predict


def our_pass(args: argparse.Namespace, device: str) -> Callable[[], None]:
    """Inference as in inference_sd_single.py, with its models loaded: a function that predicts all images."""
    dtype = DTYPES[args.dtype]
    base = base_for(args, device, dtype)
    unet = base.network
    if args.vae:
        tiny = AutoencoderTiny() if args.vae == "random" else load_tiny(args.vae)
        put_in_decoder(base.vae, tiny)
        if args.vae_encodes:
            put_in_encoder(base.vae, tiny)
    a_lora(unet, args.rank)
    fuse_lora(unet)
    text = prompt_states(base, device, dtype)
    base.text_encoder = None
    base.to(device, dtype)
    set_compile(unet, args.compile)
    files, out = random_images(args)
    adapter = Adapter(NORMAL, SingleStep(base, text, base.timestep()), args.resolution)
    engine = Engine(base, [adapter], View(center_crop=True), batch_size=args.batch)

    def predict_folder() -> None:
        mine = {file: file.name for file in files}
        predict_all(mine, PartialState(cpu=device == "cpu"), engine, out, Output())

    return predict_folder


def a_lora(unet: torch.nn.Module, rank: int) -> None:
    """A LoRA that does something."""
    add_lora(unet, rank)
    rng = torch.Generator().manual_seed(2)
    for parameter in lora_parameters(unet):
        parameter.data = 0.01 * torch.randn(parameter.shape, generator=rng).to(parameter.device)


def random_images(args: argparse.Namespace) -> tuple[list[Path], Path]:
    """--images PNG files of 4:3, random but smooth, and a folder to write into."""
    folder = Path(tempfile.mkdtemp())
    rng, side = np.random.default_rng(1), args.resolution
    for index in range(args.images):
        rough = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = Image.fromarray(rough).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
        smooth.save(folder / f"{index:04d}.png")
    out = folder / "out"
    out.mkdir()
    return sorted(folder.glob("*.png")), out


MAKERS = {"released": released_pass, "ours": our_pass}


def parser() -> argparse.ArgumentParser:
    flags = parser_of("benchmarks.inference", __doc__)
    flags.add_argument("--images", type=int, default=4, help="images in the folder (4)")
    flags.add_argument("--vae", help="ours decodes with this AutoencoderTiny; random: TAESD's size, random weights")
    flags.add_argument("--vae_encodes", action="store_true", help="and encodes with it")
    flags.set_defaults(method="single")
    return flags


if __name__ == "__main__":
    compare(parser(), "benchmarks.inference", MAKERS, sys.argv[1:])
