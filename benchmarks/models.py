"""Models for the benchmarks: a folder's, or Stable Diffusion 1.5's architecture with random weights."""

import argparse

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from utils.base_model.stable_diffusion import load_base


def sd15() -> tuple[CLIPTextModel, AutoencoderKL, UNet2DConditionModel]:
    """Stable Diffusion 1.5's text encoder, VAE and UNet with random weights: 123, 84 and 860 million parameters."""
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        scaling_factor=0.18215,
    )
    return CLIPTextModel(text), vae, UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def models(args: argparse.Namespace) -> tuple[CLIPTextModel, AutoencoderKL, UNet2DConditionModel]:
    torch.manual_seed(0)
    if args.base:
        base = load_base(args.base)
        return base.text_encoder, base.vae, base.unet
    return tuple(part.requires_grad_(False).eval() for part in sd15())


def prompt_tokens(text_encoder: CLIPTextModel, count: int) -> Tensor:
    """Some prompt of full length, `count` times, where the text encoder is: (count,L)."""
    length = text_encoder.config.max_position_embeddings
    return torch.ones(count, length, dtype=torch.long, device=text_encoder.device)
