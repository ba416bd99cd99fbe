"""Kinds of layers that a LoRA may sit on, by their names. Imports nothing heavy. Of diffusers' UNet2DConditionModel:

    attention    to_q, to_k, to_v, to_out.0 of every attention layer: the paper's place
    feedforward  ff.net.0.proj, ff.net.2 of every transformer block
    projection   proj_in, proj_out around the transformer blocks (1x1 convolutions in SD 1, linears in SD 2)
    conv         conv1, conv2, conv_shortcut of every ResNet block; the down- and upsamplers' convolutions
    time         time_embedding.linear_1 and linear_2; time_emb_proj of every ResNet block; of SDXL also add_embedding

of the transformers of Stable Diffusion 3, FLUX.2, Qwen-Image and Z-Image, which have the same names in each:
    attention    projections of image and text stream, of SD 3.5's second attention too; FLUX.2's single blocks have
                 attention and feedforward in one layer, which counts as attention
    feedforward  of image and text stream
    projection   first and last layer of latents and of text states
    time         embedding of time and pooled text
    modulation   scales and shifts of the normalisations, made of the time embedding

and of other generators:
    affine          `modulation` of every convolution of StyleGAN2: w to the layer's style
    self_attention  q_proj, k_proj, v_proj, o_proj of every layer of transformers' Llama (Janus has one inside)

conv_in and conv_out belong to no kind. AugUNet widens conv_in and saves it whole; conv_out has four output channels,
so that a LoRA of rank 4 or more would hold more numbers than the layer; and sd-scripts' convolution LoRAs leave both
alone too, so that files on these layers mean the same everywhere.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from utils.cli import did_you_mean
from utils.errors import InputError

ATTENTION = ("attention",)  # the paper's place, and the default
_RESNET = r".+\.resnets\.\d+\."
_MODULES = {
    "attention": r".+\.(to_q|to_k|to_v|to_out\.0)",
    "feedforward": r".+\.ff\.net\.(0\.proj|2)",
    "projection": r".+\.attentions\.\d+\.proj_(in|out)",
    "conv": rf"{_RESNET}(conv1|conv2|conv_shortcut)|.+\.(down|up)samplers\.\d+\.conv",
    "time": rf"(time|add)_embedding\.linear_[12]|{_RESNET}time_emb_proj",
}
ALL = tuple(_MODULES)  # a UNet's, in the canonical order
_BLOCK, _Z_BLOCK = r"transformer_blocks\.\d+\.", r"(layers|noise_refiner|context_refiner)\.\d+\."
_TRANSFORMER = {
    "attention": rf"{_BLOCK}attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    rf"|single_{_BLOCK}attn\.(to_qkv_mlp_proj|to_out)"
    rf"|{_Z_BLOCK}attention\.(to_[qkv]|to_out\.0)",
    "feedforward": rf"{_BLOCK}ff(_context)?\.(net\.(0\.proj|2)|linear_(in|out))"
    rf"|{_BLOCK}(img|txt)_mlp\.net\.(0\.proj|2)"
    rf"|{_Z_BLOCK}feed_forward\.w[123]",
    "projection": r"context_embedder|x_embedder|img_in|txt_in|proj_out"
    r"|all_x_embedder\.\d+-\d+|cap_embedder\.1|all_final_layer\.\d+-\d+\.linear",
    "time": r"time_(text|guidance)_embed\.(timestep|text|guidance)_embedder\.linear_[12]|t_embedder\.mlp\.[02]",
    "modulation": rf"{_BLOCK}norm1(_context)?\.linear|{_BLOCK}(img|txt)_mod\.1|norm_out\.linear"
    r"|(double_stream_modulation_(img|txt)|single_stream_modulation)\.linear"
    rf"|{_Z_BLOCK}adaLN_modulation\.0|all_final_layer\.\d+-\d+\.adaLN_modulation\.1",
}
OF_DIFFUSION = tuple(_MODULES | _TRANSFORMER)  # what --lora_targets may name
_OTHERS = {
    "affine": r"(conv1|to_rgb1|convs\.\d+|to_rgbs\.\d+)\.conv\.modulation",
    "self_attention": r"(.+\.)?layers\.\d+\.self_attn\.[qkvo]_proj",
}
_TABLES = {"transformer": _TRANSFORMER, "unet": _MODULES, "base_model.model": _OTHERS}  # by the first word of keys
KINDS = (*OF_DIFFUSION, *_OTHERS)  # of any generator


def parse_targets(
    text: str, name: str = "--lora_targets", known: tuple[str, ...] = OF_DIFFUSION, everything: tuple[str, ...] = ALL
) -> tuple[str, ...]:
    """ "attention", "all" or a comma-separated choice of kinds -> the kinds, each once, in the order of `known`.

    everything: what "all" stands for; of a transformer it is replaced by the kinds that it has (`add_lora`).

    Raises InputError, which begins with `name`, for an unknown kind (with the nearest known one) or none at all.
    """
    words = [word.strip() for word in text.split(",")]
    if words == ["all"]:
        return everything
    for word in words:
        if word not in known:
            hint = did_you_mean(word, [*known, "all"])
            wrong = f"{word!r} is not a kind of layer{hint}" if word != "all" else "all stands alone"
            raise InputError(f"{name}={text}: {wrong} (all, or some of {','.join(known)})")
    return tuple(kind for kind in known if kind in words)


def kind_of(module: str) -> str | None:
    """The kind of the layer of this name, such as "mid_block.resnets.0.conv1"; None: no LoRA goes there."""
    return place_of(module)[1]


@lru_cache(4096)  # called for every layer at every checkpoint
def place_of(module: str) -> tuple[str, str | None]:
    """(first word of its keys in a LoRA file: "unet", "transformer" or "base_model.model"; its kind) of a layer."""
    for prefix, table in _TABLES.items():
        for kind, pattern in table.items():
            if re.fullmatch(pattern, module):
                return prefix, kind
    return "", None


def kinds_of(modules: Iterable[str]) -> tuple[str, ...]:
    """The kinds among the layers of these names, in the order of KINDS."""
    found = {kind_of(module) for module in modules}
    return tuple(kind for kind in KINDS if kind in found)


def module_pattern(targets: Iterable[str]) -> str:
    """A regular expression that matches, in full, the names of all layers of these kinds, and no others."""
    patterns = [table[kind] for kind in targets for table in _TABLES.values() if kind in table]
    return "|".join(f"(?:{pattern})" for pattern in patterns)
