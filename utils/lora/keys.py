"""How LoRA files name their weights: every key format is known here only.

For a linear `X.to_q` (also to_k, to_v, to_out.0) of an attention layer X the formats in use write
    A  X.processor.to_q_lora.down.weight        `released`: the Intrinsic LoRA files the authors published
    B  unet.X.processor.to_q_lora.down.weight   `diffusers`: what this project writes, because the most loaders read it
    C  unet.X.to_q.lora.down.weight             `diffusers-old`: diffusers' pipelines of late 2023 (with .alpha)
    D  unet.X.to_q.lora_A.weight                `peft`: diffusers' pipelines of today; peft itself without unet.
    K  lora_unet_X_to_q.lora_down.weight        `kohya`: sd-scripts, with every dot of the module's name an
       lora_unet_X_to_q.alpha                   underscore, and alpha: the layer is scaled by alpha / rank
A and B write `to_out` for `to_out.0`. Where no alpha is given the scale is 1.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import InputError

FORMATS = ("released", "diffusers", "peft", "kohya")  # those that can be written
_DOTTED = re.compile(
    r"^(?:unet\.|base_model\.model\.)?(?P<layer>.+?)\.(?:processor\.)?(?P<target>to_q|to_k|to_v|to_out)(?:\.0)?"
    r"(?:_lora\.|\.lora\.|\.lora_|\.)(?P<part>down|up|A|B|alpha)(?:\.default)?(?:\.weight)?$"
)
# Underscores alone do not say where the dots were (down_blocks_0 is down_blocks.0, transformer_blocks_0 is
# transformer_blocks.0, to_out_0 is to_out.0), so the UNet's own grammar is spelt out.
_KOHYA = re.compile(
    r"^lora_unet_(?P<block>down_blocks_\d+|up_blocks_\d+|mid_block)_attentions_(?P<attention>\d+)"
    r"_transformer_blocks_(?P<depth>\d+)_(?P<layer>attn[12])_(?P<target>to_q|to_k|to_v|to_out_0)"
    r"\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)$"
)
_PARTS = {"A": "down", "B": "up", "lora_down.weight": "down", "lora_up.weight": "up"}


class Layer(NamedTuple):
    """One linear's LoRA as a file holds it: down (r,in), up (out,r), alpha or None; W becomes W + alpha/r up down."""

    down: Tensor
    up: Tensor
    alpha: float | None

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.down.shape[0]

    def folded(self) -> tuple[Tensor, Tensor]:
        """(down, up) for scale 1: untouched where the scale is 1 already, else fp32 with the scale in up."""
        return (self.down, self.up) if self.scale == 1 else (self.down.float(), self.up.float() * self.scale)


def split_key(key: str) -> tuple[str, str] | None:
    """A key of any format -> (the linear it belongs to, "down", "up" or "alpha"); None: not an attention LoRA's."""
    if match := _KOHYA.match(key):
        block = re.sub(r"_(\d+)$", r".\1", match["block"])
        inner = f"attentions.{match['attention']}.transformer_blocks.{match['depth']}.{match['layer']}"
        target = match["target"].replace("to_out_0", "to_out.0")
        return f"{block}.{inner}.{target}", _PARTS.get(match["part"], match["part"])
    if match := _DOTTED.match(key):
        target = match["target"].replace("to_out", "to_out.0")
        return f"{match['layer']}.{target}", _PARTS.get(match["part"], match["part"])
    return None


def key_format(key: str) -> str:
    """The format whose key this is: one of FORMATS, or "diffusers-old" (C)."""
    if key.startswith("lora_unet_"):
        return "kohya"
    if ".lora_A" in key or ".lora_B" in key:
        return "peft"
    if ".processor." in key:
        return "diffusers" if key.startswith("unet.") else "released"
    return "diffusers-old"


def make_key(module: str, part: str, to: str) -> str:
    """The key of `part` ("down", "up"; "alpha" in kohya only) of the linear `module` in the format `to`."""
    layer, target = split_module(module)
    if to == "kohya":
        return f"lora_unet_{module.replace('.', '_')}." + ("alpha" if part == "alpha" else f"lora_{part}.weight")
    if to == "peft":
        return f"unet.{module}.lora_{'A' if part == 'down' else 'B'}.weight"
    prefix = {"released": "", "diffusers": "unet."}[to]
    return f"{prefix}{layer}.processor.{target.removesuffix('.0')}_lora.{part}.weight"


def split_module(module: str) -> tuple[str, str]:
    """ "a.attn1.to_out.0" -> ("a.attn1", "to_out.0")."""
    layer, _, target = module.removesuffix(".0").rpartition(".")
    return layer, target.replace("to_out", "to_out.0")


def parse_layers(state: Mapping[str, Tensor], name: str) -> dict[str, Layer]:
    """A state dict of any format -> name of the linear -> its LoRA, in the tensors' own dtype.

    Raises InputError where a key is of no known format, is there twice under two formats, or lacks its partner.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{name}: not a LoRA (an empty file, or no mapping of names to tensors)")
    for key, tensor in state.items():
        split = split_key(str(key))
        if not split or not isinstance(tensor, Tensor):
            raise InputError(f"{name}: key {key!r} is not of an attention LoRA in any known format")
        module, part = split
        if part in parts.setdefault(module, {}):
            raise InputError(f"{name}: {module} has two {part} weights; one of them is {key!r}")
        parts[module][part] = tensor
    layers = {}
    for module, weights in parts.items():
        if "down" not in weights or "up" not in weights:
            raise InputError(f"{name}: {module} has {' and '.join(weights)} only, not both down and up")
        down, up = weights["down"], weights["up"]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise InputError(f"{name}: {module}: down {tuple(down.shape)} and up {tuple(up.shape)} do not multiply")
        layers[module] = Layer(down, up, float(weights["alpha"]) if "alpha" in weights else None)
    return layers


def to_format(layers: Mapping[str, Layer], to: str) -> dict[str, Tensor]:
    """Write layers under the keys of `to` (one of FORMATS).

    Bits are kept wherever the file has no alpha or alpha = rank. Only kohya's keys can say another alpha; the others
    get it folded into up, in fp32. kohya always gets an alpha, rank where there was none.
    """
    state = {}
    for module, layer in layers.items():
        down, up = (layer.down, layer.up) if to == "kohya" else layer.folded()
        state |= {make_key(module, "down", to): down.contiguous(), make_key(module, "up", to): up.contiguous()}
        if to == "kohya":
            alpha = float(down.shape[0]) if layer.alpha is None else layer.alpha
            if split_key(make_key(module, "alpha", to)) != (module, "alpha"):
                raise InputError(f"{module}: kohya's keys have no name for it that could be read back")
            state[make_key(module, "alpha", to)] = torch.tensor(alpha)
    return state
