"""One training step: the released computation and ours, interleaved in one process.

    python -m benchmarks.train_step                                   # Stable Diffusion 1.5's size, random weights
    python -m benchmarks.train_step --base miniworld/mini-sd --resolution 64 --batch 16
    python -m benchmarks.train_step --batch 4 --dtype bf16            # on a GPU

released  the paper's code (from its source): fp32, the image and the label through the VAE in
          every step, the prompt through the text encoder once per sample, attention as matrix products and a softmax
ours      latents from the cache, the prompt's states computed once, fused attention, frozen weights in --dtype

Both train the same LoRA with AdamW on the same images.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from benchmarks.models import models, prompt_tokens
from benchmarks.side_by_side import DTYPES, compare, parser_of
from utils.latents import moments
from utils.lora import add_lora
from utils.noise import generators
from utils.objectives import SingleStep


def released_step(args: argparse.Namespace, device: str) -> Callable[[], None]:
    """The released computation, restated from a description of its code: a function that makes one step."""
    text_encoder, vae, unet = (part.to(device) for part in models(args))
    unet.set_attn_processor(AttnProcessor())
    parameters = add_lora(unet, args.rank)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    rgb, target = random_images(args, device)
    tokens = prompt_tokens(text_encoder, args.batch)
    scale = vae.config.scaling_factor

    def step() -> None:
        with torch.no_grad():
            z = scale * vae.encode(rgb).latent_dist.mode()
            wanted = scale * vae.encode(target).latent_dist.sample()
            text = text_encoder(tokens)[0]
        t = torch.full((args.batch,), 999, device=device)
        descend(nn.functional.mse_loss(unet(z, t, text).sample, wanted), parameters, optimizer)

    return step


def our_step(args: argparse.Namespace, device: str) -> Callable[[], None]:
    """A step as in utils/training/loop.py, with the latent cache: a function that makes one step."""
    text_encoder, vae, unet = models(args)
    dtype = DTYPES[args.dtype]
    rgb, target = random_images(args, device)
    vae.to(device)
    latents = {name: value.to(dtype) for name, value in moments(vae, {"rgb": rgb, "target": target}).items()}
    with torch.no_grad():
        text = text_encoder(prompt_tokens(text_encoder, 1))[0].to(device, dtype)
    vae.to("cpu")
    unet.to(device, dtype)
    parameters = add_lora(unet, args.rank)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if args.compile:
        unet.compile()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    objective = SingleStep(vae, text, 999)
    del text_encoder
    vae.encoder = vae.decoder = None  # on a CPU, too, training needs neither

    def step() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = objective.loss(unet, latents, generators(0, 0, args.batch))
        descend(loss, parameters, optimizer)

    return step


def random_images(args: argparse.Namespace, device: str) -> Tensor:
    """rgb and target in [-1,1], (2,B,3,R,R)."""
    rng = torch.Generator().manual_seed(1)
    return (torch.rand(2, args.batch, 3, args.resolution, args.resolution, generator=rng) * 2 - 1).to(device)


def descend(loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()


MAKERS = {"released": released_step, "ours": our_step}


def parser() -> argparse.ArgumentParser:
    flags = parser_of("benchmarks.train_step", __doc__)
    flags.add_argument("--gradient_checkpointing", action="store_true", help="in ours")
    return flags


if __name__ == "__main__":
    compare(parser(), "benchmarks.train_step", MAKERS, sys.argv[1:])
