"""Models for the benchmarks: a folder's, or Stable Diffusion's architectures with random weights."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from miniworld.pretraining import random_sd
from utils.base_model.names import FAMILIES
from utils.base_model.quantised import quantise
from utils.base_model.single_file_parts import CONFIGS
from utils.base_model.stable_diffusion import Base, load_base, widen_conv_in

FULL_SIZE = {"single": "sd1", "augunet": "sd2"}  # the paper's bases, by method
TINY = (32, 64, 64)  # the UNet's width at each level of "tiny"


def random_base(kind: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Base:
    """Random weights, made on `device` in `dtype`: "sd1" (text encoder, VAE and UNet of 123, 84 and 860 million
    parameters), "sd2" or "tiny". Without a tokenizer.
    """
    with torch.device(device), default_dtype(dtype):
        if kind == "tiny":
            text = random_sd.build_text_encoder(random_sd.build_tokenizer())
            vae, unet = random_sd.build_vae(TINY), random_sd.build_unet(channels=TINY)
        else:
            folder = CONFIGS[kind]
            text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
    schedule = random_sd.build_scheduler() if kind == "tiny" else DDIMScheduler.from_pretrained(folder / "scheduler")
    for part in (text, vae, unet):
        part.requires_grad_(False).eval()
    return Base(f"random {kind}", None, text, vae, unet, schedule)


def base_for(args: argparse.Namespace, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """The base of --base and --method, AugUNet's with a widened conv_in; a folder's is in fp32 on the CPU. A `Base`,
    or another `Family` where --base is the name of one. Its linear layers are in --base_precision.
    """
    base = _whole_base(args, device, dtype)
    if getattr(args, "base_precision", None):
        quantise(base.network, args.base_precision, dtype)
    return base


def _whole_base(args: argparse.Namespace, device: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    if is_family(args.base):
        from benchmarks.families import random_family  # imports every family's pipeline

        return random_family(args.base, device, dtype)
    random = args.base if args.base in ("tiny", *CONFIGS) else None if args.base else FULL_SIZE[args.method]
    base = random_base(random, device, dtype) if random else load_base(args.base)
    if args.method == "augunet":
        own = base.unet.conv_in
        donor = nn.Conv2d(2 * own.in_channels, own.out_channels, own.kernel_size, padding=own.padding)
        widen_conv_in(base.unet, donor.to(own.weight))
    return base


def is_family(name: str | None) -> bool:
    """True for the names in benchmarks/families.py."""
    return name in FAMILIES and name != "sd"


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, new parameters have `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def prompt_tokens(text_encoder: CLIPTextModel, count: int) -> Tensor:
    """Some prompt of full length, `count` times, where the text encoder is: (count,L)."""
    length = text_encoder.config.max_position_embeddings
    return torch.ones(count, length, dtype=torch.long, device=text_encoder.device)


@torch.no_grad()
def prompt_states(base: Any, device: str, dtype: torch.dtype) -> Any:
    """States of a prompt, as `base.encode_prompt` gives them: of Stable Diffusion (1,L,D)."""
    if base.family == "sd":
        return base.text_encoder(prompt_tokens(base.text_encoder, 1))[0].to(device, dtype)
    from benchmarks.families import random_states

    return random_states(base)
