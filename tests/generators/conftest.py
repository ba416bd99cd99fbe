"""Small generators with random weights, and a teacher, in folders as the scripts read them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel, VQModel
from transformers import GenerationConfig, JanusConfig, JanusForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from generators.stylegan2 import StyleGAN2, save_gan
from utils.labels.teachers import ABOUT, MAPS

BLOCKS = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}


@pytest.fixture(scope="session")
def gan_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gan")
    save_gan(folder, StyleGAN2({4: 16, 8: 16, 16: 8}, style_dim=32, depth=2))
    return folder


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("teacher")
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    UNet2DModel(in_channels=12, out_channels=4 * MAPS, **sizes, **BLOCKS).save_pretrained(folder)
    (folder / ABOUT).write_text(json.dumps({"patch": 2, "resolution": 16}))
    return folder


@pytest.fixture(scope="session")
def ar_folder(tmp_path_factory) -> Path:
    """Images of 32 px as 8 x 8 tokens of 16."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("ar")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vq = VQModel(block_out_channels=(8, 8, 8), norm_num_groups=4, num_vq_embeddings=16, sample_size=32, **blocks)
    vq.quantize.embedding.weight.data.normal_()
    vq.save_pretrained(folder / "vq")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=17, **sizes)).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="session")
def janus_folder(tmp_path_factory) -> Path:
    """Janus' own class, tiny: images of 32 px as 8 x 8 tokens of 16."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("janus")
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 4}
    vq = {"embed_dim": 8, "num_embeddings": 16, "base_channels": 32, "channel_multiplier": [1, 1, 1], "num_patches": 8}
    vq |= {"latent_channels": 32, "num_res_blocks": 1, "projection_dim": 32, "image_token_embed_dim": 32}
    config = JanusConfig(
        text_config={"model_type": "llama", "vocab_size": 40, "pad_token_id": 0, **text},
        vision_config={"projection_dim": 32, **vision},
        vq_config=vq,
    )
    model = JanusForConditionalGeneration(config)
    model.generation_config = GenerationConfig(bos_token_id=1, generation_kwargs={"boi_token_id": 5})
    model.save_pretrained(folder)
    return folder
