"""How LoRA files name their weights: every key format is known here only.

For a layer X.to_q of attention (also to_k, to_v, to_out.0), or any other layer Y, the formats in use write
    A  X.processor.to_q_lora.down.weight        `released`: the Intrinsic LoRA files the authors published
    B  unet.X.processor.to_q_lora.down.weight   `diffusers`: what this project writes, because the most loaders read it
    C  unet.Y.lora.down.weight                  `diffusers-old`: diffusers' pipelines of late 2023 (with .alpha)
    D  unet.Y.lora_A.weight                     `peft`: diffusers' pipelines of today; peft itself without unet.;
                                                transformer. instead of diffusers' transformers, base_model.model. of
                                                other generators
    K  lora_unet_Y.lora_down.weight             `kohya`: sd-scripts, with every dot of the module's name an
       lora_unet_Y.alpha                        underscore, and alpha: the layer is scaled by alpha / rank
    T  diffusion_model.Y.lora_A.weight          `ai-toolkit`: trainers of transformers
A and B write `to_out` for `to_out.0`, and have names for attention layers only. K of SDXL (`sdxl_key`), and K and T of
FLUX.2 (`renamed`), have their authors' names of layers. The scale's other places are those of scale.py. A linear's
weights are down (r,in), up (out,r); a convolution's are down (r,in,kh,kw), up (out,r,1,1).
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from utils.errors import InputError
from utils.lora.scale import NO_RECORD, WRAPPERS, Record, rank_record, scale_of, scale_records, without_scale
from utils.lora.targets import ATTENTION, kind_of, kinds_of, place_of

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("released", "diffusers", "peft", "kohya")  # those that can be written for a UNet
ATTENTION_ONLY = ("released", "diffusers")
_DOTTED = re.compile(
    r"^(?:unet\.|transformer\.|diffusion_model\.|base_model\.model\.)?(?P<module>.+?)"
    r"(?:_lora\.|\.lora\.|\.lora_|\.)(?P<part>down|up|A|B|alpha)"
    r"(?:(?<=_[AB])\.(?!bias$)[^.]+?)?(?:\.weight)?$"  # after A and B peft's name of the adapter
)
_KOHYA = re.compile(r"^lora_unet_(?P<module>[\w-]+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)$")
# Underscores alone do not say where the dots were (down_blocks_0 is down_blocks.0, to_out_0 is to_out.0), so the parts
# of the names are spelt out, of a UNet, of Qwen-Image and of Z-Image; the longer come first: proj_in is not proj.in.
_NAMES = re.compile(
    r"down_blocks|up_blocks|mid_block|attentions|transformer_blocks|resnets|downsamplers|upsamplers|attn\d?|to_q|to_k|"
    r"to_v|to_out|ff|net|proj_in|proj_out|proj|conv_shortcut|conv1|conv2|conv|time_emb_proj|time_embedding|"
    r"add_embedding|linear_\d|add_[qkv]_proj|to_add_out|(?:img|txt)_(?:mlp|mod|in)|time_text_embed|timestep_embedder|"
    r"norm_out|linear|layers|(?:noise|context)_refiner|attention|feed_forward|w[123]|adaLN_modulation|t_embedder|"
    r"cap_embedder|mlp|all_x_embedder|all_final_layer|\d+(?:-\d+)?"
)
# SDXL's layers in sd-scripts' files, which trains its authors' UNet: diffusers' names -> theirs, in kohya's spelling
_SDXL = {
    "mid_block_resnets_0": "middle_block_0", "mid_block_attentions_0": "middle_block_1",
    "mid_block_resnets_1": "middle_block_2",
    "time_embedding_linear_1": "time_embed_0", "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0", "add_embedding_linear_2": "label_emb_0_2",
    **{f"down_blocks_{level}_{part}_{i}": f"input_blocks_{3 * level + i + 1}_{place}"
       for level, i, (place, part) in product(range(3), range(2), enumerate(("resnets", "attentions")))},
    **{f"up_blocks_{level}_{part}_{i}": f"output_blocks_{3 * level + i}_{place}"
       for level, i, (place, part) in product(range(3), range(3), enumerate(("resnets", "attentions")))},
    **{f"down_blocks_{level}_downsamplers_0_conv": f"input_blocks_{3 * level + 3}_0_op" for level in range(2)},
    **{f"up_blocks_{level}_upsamplers_0": f"output_blocks_{3 * level + 2}_2" for level in range(2)},
}  # fmt: skip
_SDXL_RESNET = {
    "conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
_FROM_SDXL, _FROM_SDXL_RESNET = ({theirs: ours for ours, theirs in names.items()} for names in (_SDXL, _SDXL_RESNET))
_FLUX2_KEY = re.compile(
    r"^(?:diffusion_model\.|base_model\.model\.|lora_unet_)(?P<kind>double|single)_blocks[._](?P<number>\d+)[._](?P<layer>[\w.]+?)"
    r"\.(?P<part>lora_(?:A|B|down|up)|alpha)(?P<end>\.weight)?$"
)
_FLUX2 = {  # a layer in a block of FLUX.2, as its authors name it in kohya's spelling -> diffusers' one or three of it
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp_0": ("ff.linear_in",), "img_mlp_2": ("ff.linear_out",),
    "txt_mlp_0": ("ff_context.linear_in",), "txt_mlp_2": ("ff_context.linear_out",),
    "linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",),
}  # fmt: skip
_DOTTED_WRAPPERS = re.compile(rf"(?<![^.])(?:{WRAPPERS}|module)(?:\.|$)")
_KOHYA_WRAPPERS = re.compile(rf"(?<=_)(?:{WRAPPERS})_|(?<=^lora_unet_)module_")
_TEXT_ENCODER = re.compile(
    r"^(?:lora_te\d*_|(?:base_model\.model\.)?(?:text_encoder(?:_\d+)?|text_model|cond_stage_model|te\d*)\.)"
)
_FOREIGN = {  # what is not a plain LoRA, by a part of its keys
    "DoRA": r"dora_scale|lora_magnitude_vector",
    "LoHa": r"hada_[wt]",
    "LoKr": r"lokr_[wt]",
    "(IA)3": r"ia3_l|\.on_input$|^lora_(?:unet|te\d*)_\w+\.weight$",
    "GLoRA": r"\.[ab][12]\.weight$",
    "OFT or BOFT": r"(?<![a-z])b?oft_",
    "LoCon in Tucker form (lora_mid)": r"lora_mid",
    "VeRA": r"vera_lambda",
    "full differences of weights (diff)": r"\.diff(?:_b)?$",
    "normalisation layers": r"\.[wb]_norm$",
    "biases": r"(?:lora_[AB]|lora_up|lora_down|lora\.up|lora\.down)(?:\.\w+)?\.bias$",
    "trained scalars": r"\.scalar$",
    "quantised weights with scales of their own": r"scale_weight|weight_scale|scale_input|scaled_fp8",
}
_PARTS = {"A": "down", "B": "up", "lora_down.weight": "down", "lora_up.weight": "up"}


class Layer(NamedTuple):
    """One layer's LoRA as a file holds it, in torch or in numpy; W becomes W + alpha/r up down.

    alpha: rank times the scale that `scale_of` found, at the place `stated`; None: nothing states it, and it is r.
    """

    down: Any
    up: Any
    alpha: float | None
    stated: str = NO_RECORD

    @property
    def scale(self) -> float:
        rank = self.down.shape[0]
        return self.alpha / rank if rank and self.alpha is not None else 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """(in, out) of a linear, (in, out, kh, kw) of a convolution."""
        return (self.down.shape[1], self.up.shape[0], *self.down.shape[2:])

    def folded(self) -> "tuple[Tensor, Tensor]":
        """(down, up) for scale 1: untouched where the scale is 1 already, else fp32 with the scale in up (torch)."""
        return (self.down, self.up) if self.scale == 1 else (self.down.float(), self.up.float() * self.scale)


def split_key(key: str) -> tuple[str, str] | None:
    """A key of any format -> (the layer it belongs to, "down", "up" or "alpha"); None: of no layer that has a kind.

    Wrappers' names in it are passed over.
    """
    key = strip_wrappers(key)
    if match := _KOHYA.match(key):
        spelt = _named(match["module"], _FROM_SDXL, _FROM_SDXL_RESNET)
        names = _NAMES.findall(spelt)
        module = ".".join(names) if "_".join(names) == spelt else ""
    elif match := _DOTTED.match(key):
        module = re.sub(r"\.processor(?=\.to_\w+$)", "", match["module"])
        module += ".0" if module.endswith(".to_out") and not kind_of(module) else ""  # FLUX.2 has both
    return (module, _PARTS.get(match["part"], match["part"])) if match and kind_of(module) else None


def strip_wrappers(key: str) -> str:
    """The name of a weight or module without what wrappers put into it, anywhere: torch.compile (`_orig_mod.`), DDP
    (`module.`), FSDP, DeepSpeed, activation checkpointing. "unet._orig_mod.a.weight" -> "unet.a.weight".

    In kohya's keys dots are underscores; `module` is left out after lora_unet_ only.
    """
    if key.startswith("lora_"):
        return _KOHYA_WRAPPERS.sub("", key)
    return _DOTTED_WRAPPERS.sub("", key).removesuffix(".")


def is_text_encoders(key: str) -> bool:
    """True if a key belongs to a LoRA on a text encoder."""
    return bool(_TEXT_ENCODER.match(strip_wrappers(key)))


def key_format(key: str) -> str:
    """The format whose key this is: one of FORMATS, "diffusers-old" (C), or "ai-toolkit" (T)."""
    if key.startswith("lora_unet_"):
        return "kohya"
    if key.startswith("diffusion_model."):
        return "ai-toolkit"
    if ".lora_A" in key or ".lora_B" in key:
        return "peft"
    if ".processor." in key:
        return "diffusers" if key.startswith("unet.") else "released"
    return "diffusers-old"


def make_key(module: str, part: str, to: str) -> str:
    """The key of `part` ("down", "up"; "alpha" in kohya only) of the layer `module` in the format `to`."""
    if to == "kohya":
        return f"lora_unet_{module.replace('.', '_')}." + ("alpha" if part == "alpha" else f"lora_{part}.weight")
    if to in ("peft", "ai-toolkit"):
        prefix = "diffusion_model" if to == "ai-toolkit" else place_of(module)[0]
        return f"{prefix}.{module}.lora_{'A' if part == 'down' else 'B'}.weight"
    prefix, (layer, target) = {"released": "", "diffusers": "unet."}[to], split_module(module)
    return f"{prefix}{layer}.processor.{target.removesuffix('.0')}_lora.{part}.weight"


def sdxl_key(key: str) -> str:
    """A kohya key of SDXL with diffusers' name of the layer -> with its authors', which sd-scripts writes."""
    module, _, part = key.removeprefix("lora_unet_").partition(".")
    return f"lora_unet_{_named(module, _SDXL, _SDXL_RESNET)}.{part}"


def _named(module: str, blocks: Mapping[str, str], layers: Mapping[str, str]) -> str:
    """A name in kohya's spelling, its block and the layer in it renamed by the tables; others as they are."""
    block = next((block for block in blocks if f"{module}_".startswith(f"{block}_")), None)
    if block is None:
        return module
    layer = module.removeprefix(block).removeprefix("_")
    return f"{blocks[block]}_{layers.get(layer, layer)}".removesuffix("_")


def split_module(module: str) -> tuple[str, str]:
    """An attention layer's linear: "a.attn1.to_out.0" -> ("a.attn1", "to_out.0")."""
    layer, _, target = module.removesuffix(".0").rpartition(".")
    return layer, target.replace("to_out", "to_out.0")


def parse_layers(
    state: "Mapping[str, Tensor | np.ndarray]", name: str, header: Mapping[str, str] | None = None
) -> dict[str, Layer]:
    """A state dict of any format -> name of the layer -> its LoRA, in the weights' own dtype.

    header: the file's metadata, which may state the layers' scale (scale.py).
    Raises InputError where a key is of no known format, is there twice under two formats, or lacks its partner; for
    text encoders' layers; for other kinds of adapters, by name; and where statements of a scale contradict each other.
    """
    parts: dict[str, dict] = {}
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{name}: not a LoRA (an empty file, or no mapping of names to tensors)")
    _refuse_others(state, name)
    for key, weight in renamed(state).items():
        split = split_key(str(key))
        if not split or not hasattr(weight, "ndim"):
            raise InputError(f"{name}: key {key!r} is of no LoRA layer of a UNet in any known format")
        module, part = split
        if part in parts.setdefault(module, {}):
            raise InputError(f"{name}: {module} has two {part} weights; one of them is {key!r}")
        parts[module][part] = weight
    try:
        records = scale_records(header or {})
        return {module: _layer(module, weights, name, records) for module, weights in parts.items()}
    except InputError:
        raise
    except ValueError as error:  # of scale.py
        raise InputError(f"{name}: {error}") from None


def renamed(state: Mapping) -> dict:
    """A state dict in which the layers of FLUX.2's blocks have diffusers' names, where they have its authors'.

    Theirs is one layer for query, key and value: down is that of all three, up has their rows one after the other.
    """
    found: dict = {}
    for key, weight in state.items():
        match = _FLUX2_KEY.match(str(key))
        layers = _FLUX2.get(match["layer"].replace(".", "_"), ()) if match else ()
        if match is None or not layers:
            found[key] = weight
            continue
        block = f"transformer.{'single_' * (match['kind'] == 'single')}transformer_blocks.{match['number']}"
        rows = weight.shape[0] // len(layers) if match["part"] in ("lora_B", "lora_up") else 0
        for i, layer in enumerate(layers):
            part = weight[i * rows : (i + 1) * rows] if rows else weight
            found[f"{block}.{layer}.{match['part']}{match['end'] or ''}"] = part
    return found


def without_text_encoder(state: "Mapping[str, Tensor | np.ndarray]") -> tuple[dict, int]:
    """The weights that are not a text encoder's, and the number of text-encoder layers left out."""
    if not isinstance(state, Mapping):
        return state, 0  # which `parse_layers` refuses
    others = {re.split(r"\.lora[._]|_lora\.|\.alpha$", str(key))[0] for key in state if is_text_encoders(str(key))}
    return {key: value for key, value in state.items() if not is_text_encoders(str(key))}, len(others)


def _refuse_others(state: Mapping, name: str) -> None:
    """InputError for what is not a plain LoRA, by its name, and for layers of a text encoder."""
    for kind, pattern in _FOREIGN.items():
        if keys := [key for key in map(str, state) if re.search(pattern, key)]:
            raise InputError(
                f"{name}: holds {kind}, e.g. key {keys[0]!r}; only plain LoRAs (up @ down) are read: train one, or "
                "merge the file into its base model with the program that made it"
            )
    if keys := [key for key in map(str, state) if is_text_encoders(key)]:
        raise InputError(
            f"{name}: {len(keys)} of its keys belong to a text encoder, e.g. {keys[0]!r}, which is not in this UNet "
            "(the prompt's encoder stays frozen here); to leave them out: python -m utils.lora convert IN OUT "
            "--format kohya --drop_text_encoder"
        )


def _layer(module: str, weights: dict, name: str, records: Sequence[Record]) -> Layer:
    if "down" not in weights or "up" not in weights:
        raise InputError(f"{name}: {module} has {' and '.join(weights)} only, not both down and up")
    down, up = weights["down"], weights["up"]
    for weight in (down, up):
        if not re.fullmatch(r"(torch\.)?b?float(16|32|64)", str(weight.dtype)):
            raise InputError(f"{name}: {module} holds {weight.dtype}, not floats: it is not a LoRA that was trained")
    linear = down.ndim == up.ndim == 2
    conv = down.ndim == up.ndim == 4 and tuple(up.shape[2:]) == (1, 1)
    if not (linear or conv) or down.shape[0] != up.shape[1]:
        raise InputError(f"{name}: {module}: down {tuple(down.shape)} and up {tuple(up.shape)} do not multiply")
    alpha, rank = weights.get("alpha"), down.shape[0]
    if alpha is not None:
        value = alpha.reshape(-1)[0].item() if math.prod(alpha.shape) == 1 else math.nan
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"{name}: {module}: its alpha is not one finite number")
        alpha = float(value)
    scale, stated = scale_of(module, rank, alpha, records, max(down.shape[2:], default=1))
    return Layer(down, up, None if stated == NO_RECORD else scale * rank, stated)


def header_of(layers: Mapping[str, Layer], header: Mapping[str, str], to: str) -> dict[str, str]:
    """The header for `to_format`'s tensors: `header`, with no statement of a scale but what those tensors need."""
    ranks = {module: layer.down.shape[0] for module, layer in layers.items()}
    prefix = "" if to == "released" else place_of(next(iter(ranks)))[0]
    return without_scale(header) | (rank_record(ranks, prefix) if to != "kohya" else {})


def to_format(layers: Mapping[str, Layer], to: str) -> "dict[str, Tensor]":
    """Write layers (of torch tensors) under the keys of `to` (one of FORMATS).

    Bits are kept wherever the file has no alpha or alpha = rank. Only kohya's keys can say another alpha; the others
    get it folded into up, in fp32. kohya always gets an alpha, rank where there was none.

    Raises InputError where the format has no names for some of the layers.
    """
    import torch

    others = [kind for kind in kinds_of(layers) if kind not in ATTENTION]
    others += [] if others or {place_of(module)[0] for module in layers} == {"unet"} else ["a transformer's"]
    if to in ATTENTION_ONLY and others:
        raise InputError(
            f"{to} keys can name attention layers only, and this LoRA has others ({', '.join(others)}): "
            "use peft keys (diffusers 0.35 and newer) or kohya keys (WebUI, ComfyUI)"
        )
    state: dict[str, Tensor] = {}
    for module, layer in layers.items():
        down, up = (layer.down, layer.up) if to == "kohya" else layer.folded()
        down, up = (part.clone(memory_format=torch.contiguous_format) for part in (down, up))  # FLUX.2's share one
        state |= {make_key(module, "down", to): down, make_key(module, "up", to): up}
        if to == "kohya":
            alpha = float(down.shape[0]) if layer.alpha is None else layer.alpha
            if split_key(make_key(module, "alpha", to)) != (module, "alpha"):
                raise InputError(f"{module}: kohya's keys have no name for it that could be read back")
            state[make_key(module, "alpha", to)] = torch.tensor(alpha)
    return state
