"""Bases of the newer families at full size with random weights: what `--base sdxl` and its like stand for.

The network's configurations are those of the published models as far as they are public; where an entry is empty,
diffusers' defaults are the published model's.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.models import default_dtype
from utils.base_model.flux2 import Flux2
from utils.base_model.parts import Family
from utils.base_model.qwen_image import QwenImage
from utils.base_model.sd3 import StableDiffusion3
from utils.base_model.sdxl import StableDiffusionXL
from utils.base_model.z_image import ZImage


class FullSize(NamedTuple):
    """network, vae: configurations; tokens: of the text, of a short prompt where it is not padded; width: its
    states'.
    """

    kind: type[Family]
    network: dict[str, Any]
    vae: dict[str, Any]
    tokens: int
    width: int


def kl(channels: int, **more: object) -> dict[str, Any]:
    """AutoencoderKL with the widths of Stable Diffusion's, and latents of so many channels."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 1024}
    return blocks | widths | {"latent_channels": channels, **more}


PLAIN = kl(16, use_quant_conv=False, use_post_quant_conv=False)  # of Stable Diffusion 3 and of FLUX.1
FULL_SIZE = {
    "sdxl": FullSize(
        StableDiffusionXL,
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 1280 + 6 * 256,
        },
        kl(4),
        77,
        2048,
    ),
    "sd3": FullSize(
        StableDiffusion3,
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
        PLAIN,
        77 + 256,
        4096,
    ),
    "flux2": FullSize(
        Flux2,
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        {},
        512,
        7680,
    ),
    "z_image": FullSize(ZImage, {}, PLAIN, 32, 2560),
    "qwen_image": FullSize(QwenImage, {}, {}, 16, 3584),
}
POOLED = {"sdxl": 1280, "sd3": 2048}  # width of the pooled text state


def random_family(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Family:
    """A base of FULL_SIZE with random weights that are made on `device` in `dtype`; without text encoders."""
    wanted = FULL_SIZE[name]
    with torch.device(device), default_dtype(dtype):
        parts = [wanted.kind.vae_kind(**wanted.vae), wanted.kind.network_kind(**wanted.network)]
        for part in parts:
            part.requires_grad_(False).eval()
        return wanted.kind(f"random {name}", *parts)


def random_states(base: Family) -> dict[str, Tensor]:
    """States of one prompt as `base.encode_prompt` gives them: zeros, where the network is and in its dtype."""
    wanted, like = FULL_SIZE[base.family], next(base.network.parameters())
    count = () if base.family == "z_image" else (1,)
    states = {"text": like.new_zeros(*count, wanted.tokens, wanted.width)}
    if base.family in POOLED:
        states["pooled"] = like.new_zeros(1, POOLED[base.family])
    return states
