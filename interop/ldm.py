"""A Stable Diffusion under the key names of 2022's latent diffusion code: one-file checkpoints.

    python -m interop.ldm FOLDER OUT.safetensors        a folder in diffusers' format -> one file

The mapping is that of diffusers' scripts/convert_diffusers_to_original_stable_diffusion.py, for any number of levels.
The tests build their checkpoints with it; `make interop` and `make comfyui` full-size ones.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}  # fmt: skip
ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
VAE = {"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "mid_block.attentions.0.": "mid.attn_1.",
    "mid_block.resnets.0.": "mid.block_1.", "mid_block.resnets.1.": "mid.block_2.", "downsamplers.0.": "downsample.",
    "upsamplers.0.": "upsample.", "down_blocks.": "down.", ".resnets.": ".block.", ".group_norm.": ".norm.",
    ".to_q.": ".q.", ".to_k.": ".k.", ".to_v.": ".v.", ".to_out.0.": ".proj_out."}  # fmt: skip
OPEN_CLIP = {"embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding.":
    "token_embedding.", "final_layer_norm.": "ln_final.", "encoder.layers.": "transformer.resblocks.", "layer_norm1.":
    "ln_1.", "layer_norm2.": "ln_2.", "fc1.": "c_fc.", "fc2.": "c_proj.", "self_attn.": "attn."}  # fmt: skip


def unet_to_ldm(state: Mapping[str, Tensor], levels: int, layers: int) -> dict[str, Tensor]:
    """levels: of the UNet; layers: ResNet blocks of a level on the way down."""
    places = {"mid_block.attentions.0.": "middle_block.1.", "mid_block.resnets.0.": "middle_block.0.",
        "mid_block.resnets.1.": "middle_block.2."}  # fmt: skip
    for i in range(levels):
        for j in range(layers + 1):
            down, up = f"input_blocks.{(layers + 1) * i + j + 1}", f"output_blocks.{(layers + 1) * i + j}"
            for part, k in (("resnets", 0), ("attentions", 1)):
                places |= {f"down_blocks.{i}.{part}.{j}.": f"{down}.{k}.", f"up_blocks.{i}.{part}.{j}.": f"{up}.{k}."}
        places[f"down_blocks.{i}.downsamplers.0.conv."] = f"input_blocks.{(layers + 1) * (i + 1)}.0.op."
        has_attention = any(key.startswith(f"up_blocks.{i}.attentions.") for key in state)
        last = f"output_blocks.{(layers + 1) * i + layers}.{1 + has_attention}."
        places[f"up_blocks.{i}.upsamplers.0."] = last
    return {f"model.diffusion_model.{_renamed_unet(key, places)}": value for key, value in state.items()}


def _renamed_unet(key: str, places: Mapping[str, str]) -> str:
    layer, _, kind = key.rpartition(".")
    if layer in ENDS:
        return f"{ENDS[layer]}.{kind}"
    place = next(old for old in places if key.startswith(old))
    rest = key.removeprefix(place)
    if ".resnets." in place:
        rest = f"{RESNET[rest.rpartition('.')[0]]}.{kind}"
    return places[place] + rest


def vae_to_ldm(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The VAE's attention layers, linear in diffusers, are 1x1 convolutions here."""
    renamed = {}
    for key, value in state.items():
        new = key
        for i in range(levels):
            new = new.replace(f"up_blocks.{i}.", f"up.{levels - 1 - i}.")
        for old, name in VAE.items():
            new = new.replace(old, name)
        is_kernel = "attn_1" in new and new.endswith("weight") and ".norm." not in new
        renamed[f"first_stage_model.{new}"] = value[:, :, None, None] if is_kernel else value
    return renamed


def text_to_ldm(state: Mapping[str, Tensor], open_clip: bool) -> dict[str, Tensor]:
    """open_clip: as SD 2.x has it, with one more layer than is read, else as SD 1.x."""
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    if not open_clip:
        return {f"cond_stage_model.transformer.text_model.{key}": value for key, value in state.items()}
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        for old, name in OPEN_CLIP.items():
            key = key.replace(old, name)
        renamed[key.replace("q_proj.", "in_proj_")] = value
    for key in [key for key in renamed if ".in_proj_" in key]:
        joint = [renamed[key]] + [renamed.pop(key.replace("in_proj_", f"{n}_proj.")) for n in "kv"]
        renamed[key] = torch.cat(joint)
    count = 1 + max(int(key.split(".")[2]) for key in renamed if ".resblocks." in key)
    extra = {k.replace(".0.", f".{count}.", 1): v + 1 for k, v in renamed.items() if ".resblocks.0." in k}
    width = renamed["ln_final.bias"].shape[0]
    extra |= {"text_projection": torch.eye(width), "logit_scale": torch.tensor(4.6)}
    return {f"cond_stage_model.model.{key}": value for key, value in (renamed | extra).items()}


def to_ldm(unet, vae, text_encoder, open_clip: bool = False) -> dict[str, Tensor]:
    """All of a Stable Diffusion's weights (diffusers' and transformers' models) by their names in one file."""
    state = unet_to_ldm(unet.state_dict(), len(unet.config.block_out_channels), unet.config.layers_per_block)
    state |= vae_to_ldm(vae.state_dict(), len(vae.config.block_out_channels))
    state |= text_to_ldm(text_encoder.state_dict(), open_clip)
    return {key: value.contiguous() for key, value in state.items()}


def main(folder: str, out: str) -> None:
    from safetensors.torch import save_file

    from utils.base_model.stable_diffusion import load_base

    base = load_base(folder)
    hidden_act = base.text_encoder.config.hidden_act  # OpenAI's CLIP has quick_gelu
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_file(to_ldm(base.unet, base.vae, base.text_encoder, open_clip=hidden_act == "gelu"), out)
    print(f"{out}: {folder} as one file")


if __name__ == "__main__":
    main(*sys.argv[1:])
