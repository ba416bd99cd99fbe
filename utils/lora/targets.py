"""Which kinds of layers a LoRA may sit on, by their names. Imports nothing heavy. Of diffusers' UNet2DConditionModel:

    attention    to_q, to_k, to_v, to_out.0 of every attention layer: the paper's place
    feedforward  ff.net.0.proj, ff.net.2 of every transformer block
    projection   proj_in, proj_out around the transformer blocks (1x1 convolutions in SD 1, linears in SD 2)
    conv         conv1, conv2, conv_shortcut of every ResNet block; the down- and upsamplers' convolutions
    time         time_embedding.linear_1 and linear_2; time_emb_proj of every ResNet block

and of other generators:
    affine          `modulation` of every convolution of StyleGAN2: w to the layer's style
    self_attention  q_proj, k_proj, v_proj, o_proj of every layer of transformers' Llama (Janus has one inside)

conv_in and conv_out belong to no kind. AugUNet widens conv_in and saves it whole; conv_out has four output channels,
so that a LoRA of rank 4 or more would hold more numbers than the layer; and sd-scripts' convolution LoRAs leave both
alone too, so that files on these layers mean the same everywhere.
"""

import re
from collections.abc import Iterable

from utils.cli import did_you_mean
from utils.errors import InputError

ATTENTION = ("attention",)  # the paper's place, and the default
_RESNET = r".+\.resnets\.\d+\."
_MODULES = {
    "attention": r".+\.(to_q|to_k|to_v|to_out\.0)",
    "feedforward": r".+\.ff\.net\.(0\.proj|2)",
    "projection": r".+\.attentions\.\d+\.proj_(in|out)",
    "conv": rf"{_RESNET}(conv1|conv2|conv_shortcut)|.+\.(down|up)samplers\.\d+\.conv",
    "time": rf"time_embedding\.linear_[12]|{_RESNET}time_emb_proj",
}
ALL = tuple(_MODULES)  # of a UNet, in the canonical order
_MODULES |= {
    "affine": r"(conv1|to_rgb1|convs\.\d+|to_rgbs\.\d+)\.conv\.modulation",
    "self_attention": r"(.+\.)?layers\.\d+\.self_attn\.[qkvo]_proj",
}
KINDS = tuple(_MODULES)  # of any generator


def parse_targets(text: str, name: str = "--lora_targets", known: tuple[str, ...] = ALL) -> tuple[str, ...]:
    """ "attention", "all" or a comma-separated choice of kinds -> the kinds, each once, in the order of `known`.

    Raises InputError, which begins with `name`, for an unknown kind (with the nearest known one) or none at all.
    """
    words = [word.strip() for word in text.split(",")]
    if words == ["all"]:
        return known
    for word in words:
        if word not in known:
            hint = did_you_mean(word, [*known, "all"])
            wrong = f"{word!r} is not a kind of layer{hint}" if word != "all" else "all stands alone"
            raise InputError(f"{name}={text}: {wrong} (all, or some of {','.join(known)})")
    return tuple(kind for kind in known if kind in words)


def kind_of(module: str) -> str | None:
    """The kind of the layer of this name, such as "mid_block.resnets.0.conv1"; None: no LoRA goes there."""
    return next((kind for kind, pattern in _MODULES.items() if re.fullmatch(pattern, module)), None)


def kinds_of(modules: Iterable[str]) -> tuple[str, ...]:
    """The kinds among the layers of these names, in the order of KINDS."""
    found = {kind_of(module) for module in modules}
    return tuple(kind for kind in KINDS if kind in found)


def module_pattern(targets: Iterable[str]) -> str:
    """A regular expression that matches, in full, the names of all layers of these kinds, and no others."""
    return "|".join(f"(?:{_MODULES[kind]})" for kind in targets)
