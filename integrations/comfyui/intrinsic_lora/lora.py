"""Reading an Intrinsic LoRA: what its header means, the scale of every layer, and the patch of ComfyUI's model."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch

from .maps import CODINGS

PROMPTS = {"normal": "surface normal", "depth": "depth map", "albedo": "albedo", "shading": "shading"}
SCRIPTS = {"augunet": "inference_augunet.py", "gan": "inference_gan.py", "autoregressive": "inference_ar.py"}
FORMAT, LAST = "1", 999  # header format; last timestep of Stable Diffusion's schedule
# Meanings that the nodes assume: a key of the header, and how its value must begin.
MEANINGS = {
    "normal": ("frame", "opencv"),
    "depth": ("polarity", "near = white"),
    "albedo": ("colour_space", "sRGB-coded"),
    "shading": ("colour_space", "sRGB-coded"),
}
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|module|_fsdp_wrapped_module)\.")  # torch.compile, DDP, FSDP
_TEXT_ENCODER = re.compile(r"(?:text_encoder(?:_\d)?\.|lora_te\d?_)")
_KOHYA = re.compile(r"lora_unet_(?P<module>\w+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)")
_DOTTED = re.compile(
    r"(?:unet\.|base_model\.model\.)?(?P<module>.+?)(?:_lora\.|\.lora\.|\.lora_|\.)(?P<part>down|up|A|B|alpha)"
    r"(?:\.default)?(?:\.weight)?"
)
_PATTERN = re.compile(r"\^?(?:\w|\\?\.)+")  # of peft's regular expressions those that are names; no other is run
_PARTS = {"A": "down", "B": "up", "lora_down.weight": "down", "lora_up.weight": "up"}


@dataclass(frozen=True)
class Facts:
    """A LoRA's task, prompt, timestep, training size in pixels and coding of depth; and what its maps' files record:
    its name, its SHA-256 and the prompt.
    """

    task: str
    prompt: str
    timestep: int | None
    resolution: int
    depth_coding: str = "linear"
    records: dict[str, str] = field(default_factory=dict)


def clean(text: object) -> str:
    """Text of a file's header for a message: control characters, which could forge lines, as escapes; shortened."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], str(text))[:200]


def header(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; {} for other files, which have none. ValueError for a broken header."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            found = json.loads(file.read(length)).get("__metadata__", {})
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{clean(path.name)}: not a readable .safetensors file ({clean(error)})") from None


def facts(path: Path, task: str | None = None) -> Facts:
    """Facts of a file. ValueError where the header names no known task and none is given, and where it states a
    method, a version or a meaning of values that the nodes do not have.
    """
    said, name = header(path), clean(path.name)
    if (version := said.get("format_version", FORMAT)) != FORMAT:
        raise ValueError(f"{name}: its header has format {clean(version)}, these nodes read {FORMAT}; update them")
    if (method := said.get("method", "single-step")) != "single-step":
        remedy = f"run {SCRIPTS[method]}" if method in SCRIPTS else "these nodes do not know it; update them"
        why = ", which needs an 8-channel conv_in and 25 steps of its own" if method == "augunet" else ""
        raise ValueError(f"{name}: made with {clean(method)}{why}: ComfyUI's Stable Diffusion cannot run it; {remedy}")
    if (family := said.get("family", "sd")) != "sd":
        raise ValueError(f"{name}: of the base family {clean(family)}; these nodes know Stable Diffusion 1.x and 2.x; "
            "run inference_sd_single.py")  # fmt: skip
    task = task or said.get("task")
    if task not in PROMPTS:
        raise ValueError(f"{name}: its header names no known task ({clean(task)}); choose one in the node")
    own = said if said.get("task", task) == task else {}
    key, meaning = MEANINGS[task]
    if not own.get(key, meaning).startswith(meaning):
        raise ValueError(f"{name}: its header's {key} is {clean(own[key])}; these nodes only know {meaning}; run "
            "inference_sd_single.py of the version that trained it")  # fmt: skip
    coding = own.get("depth_coding", "linear") if task == "depth" else "linear"
    if coding not in CODINGS:
        raise ValueError(f"{name}: its depth has {clean(coding)} coding; these nodes know {', '.join(CODINGS)}; "
            "update them")  # fmt: skip
    prompt = own.get("prompt", PROMPTS[task])
    records = {"lora": "/".join(path.parts[-2:]), "lora_sha256": digest(path), "prompt": prompt}
    timestep = _whole(said, "timestep", 0, LAST, name)
    return Facts(task, prompt, timestep, _whole(said, "resolution", 8, 65536, name) or 512, coding, records)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole(said: dict[str, str], key: str, low: int, high: int, name: str) -> int | None:
    """A whole number of the header, or None where it has none."""
    if key not in said:
        return None
    if not re.fullmatch(r"[0-9]{1,6}", said[key]) or not low <= int(said[key]) <= high:
        raise ValueError(f"{name}: its header's {key} is {clean(said[key])}, not a number from {low} to {high}")
    return int(said[key])


def layers(state: dict[str, Any], config: dict[str, Any] | None, name: str) -> dict[str, tuple[Any, Any, float]]:
    """Keys of any format -> {module: (down, up, scale)}: W becomes W + scale up down. A module's name has dots, in
    kohya's files underscores. config: see `adapter_config`.

    ValueError for keys that are not a UNet's LoRA, which ComfyUI would leave out with only a line in its log.
    """
    name, parts = clean(name), {}
    if texts := [key for key in state if _TEXT_ENCODER.match(key)]:
        raise ValueError(f"{name}: {len(texts)} keys are of the text encoder, such as {clean(texts[0])}; these LoRAs "
            "are of the UNet alone: remove those keys, or train without the text encoder")  # fmt: skip
    for key, value in state.items():
        plain = _WRAPPERS.sub("", key)
        match = _KOHYA.fullmatch(plain) or _DOTTED.fullmatch(plain)
        if match is None or (plain.startswith("lora_unet_") and not _KOHYA.fullmatch(plain)):
            raise ValueError(f"{name}: key {clean(key)} is not of a LoRA of a UNet's layer, and would be left out")
        module = re.sub(r"\.processor(?=\.to_\w+$)", "", match["module"])
        module, part = re.sub(r"\.to_out$", ".to_out.0", module), _PARTS.get(match["part"], match["part"])
        if part in parts.setdefault(module, {}):
            raise ValueError(f"{name}: {clean(module)} has two {part} weights")
        parts[module][part] = value
    found = {}
    for module, weights in parts.items():
        if not {"down", "up"} <= weights.keys():
            raise ValueError(f"{name}: {clean(module)} lacks {'down' if 'up' in weights else 'up'}")
        down, up = weights["down"], weights["up"]
        if down.ndim < 2 or down.ndim != up.ndim or not 0 < down.shape[0] == up.shape[1]:
            raise ValueError(f"{name}: {clean(module)}: down {tuple(down.shape)} and up {tuple(up.shape)} do not fit")
        found[module] = (down, up, scale(module, down.shape[0], weights.get("alpha"), config, name))
    return found


def adapter_config(path: Path) -> dict[str, Any] | None:
    """peft's settings of the UNet, from which the scale follows: diffusers keeps them in the header, peft itself in a
    file next to the weights. None where there are none; ValueError where they are not readable.
    """
    beside = path.with_name("adapter_config.json")
    place, text = "its header's lora_adapter_metadata", header(path).get("lora_adapter_metadata")
    if text is None and path.stem == "adapter_model" and beside.is_file():
        place, text = beside.name, beside.read_text(errors="replace")
    if text is None:
        return None
    try:
        config = dict(json.loads(text))
        config = {k.removeprefix("unet."): v for k, v in config.items() if k.startswith("unet.")} or config
        patterns = [dict(config.get(key) or {}) for key in ("rank_pattern", "alpha_pattern")]
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{clean(path.name)}: {place} is not readable JSON of peft's settings") from None
    numbers = [config.get("r"), config.get("lora_alpha"), *patterns[0].values(), *patterns[1].values()]
    if not all(type(one) in (int, float) and math.isfinite(one) for one in numbers):
        raise ValueError(f"{clean(path.name)}: {place} lacks r or lora_alpha, or holds one that is not a number")
    if odd := [pattern for pattern in (*patterns[0], *patterns[1]) if not _PATTERN.fullmatch(pattern)]:
        raise ValueError(f"{clean(path.name)}: {place} names layers by {clean(odd[0])}, which these nodes cannot "
            "read; python -m utils.lora convert --format kohya writes a file without it")  # fmt: skip
    if changed := [key for key in ("use_dora", "lora_bias", "use_qalora") if config.get(key)]:
        raise ValueError(f"{clean(path.name)}: {place} has {changed[0]}, which these nodes cannot apply; merge the "
            "LoRA with peft")  # fmt: skip
    return config


def scale(module: str, rank: int, alpha: torch.Tensor | None, config: dict[str, Any] | None, name: str) -> float:
    """alpha / rank, of the tensor `alpha`, or of peft's settings, where rslora has alpha / sqrt(rank); 1 where there
    is neither. ValueError where the two contradict each other, or the settings' rank is not the weights'.
    """
    if alpha is not None and (alpha.numel() != 1 or not math.isfinite(alpha.item())):
        raise ValueError(f"{name}: {clean(module)}: its alpha is not one finite number")
    own = 1.0 if alpha is None else alpha.item() / rank
    if config is None:
        return own
    if (stated_rank := _matching(config.get("rank_pattern"), module, config["r"])) != rank:
        raise ValueError(f"{name}: {clean(module)} has rank {rank}, and peft's settings have {stated_rank}; save the "
            "LoRA again")  # fmt: skip
    stated = _matching(config.get("alpha_pattern"), module, config["lora_alpha"])
    stated /= math.sqrt(rank) if config.get("use_rslora") else rank
    if alpha is not None and not math.isclose(own, stated, rel_tol=1e-3):
        raise ValueError(f"{name}: {clean(module)} has scale {own:g} by its alpha and {stated:g} by peft's settings; "
            "remove the wrong one")  # fmt: skip
    return stated


def _matching(patterns: dict[str, float] | None, module: str, default: float) -> float:
    """The value of the first pattern that matches as peft matches: the end of the name, after a dot; ^: all of it."""
    for pattern, value in (patterns or {}).items():
        end = pattern.removeprefix("^").replace("\\.", ".")
        if module == end or (pattern[0] != "^" and module.endswith(f".{end}")):
            return value
    return default


def readable(found: dict[str, tuple[Any, Any, float]]) -> dict[str, Any]:
    """Layers under kohya's keys, the one format in which ComfyUI reads all layers and their scales."""
    state = {}
    for module, (down, up, factor) in found.items():
        key = f"lora_unet_{module.replace('.', '_')}"
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        state[f"{key}.alpha"] = torch.tensor(factor * down.shape[0])
    return state


def patched(model, path: Path, strength: float = 1.0):
    """A clone of ComfyUI's model with the LoRA. ValueError where any of its layers found none in the model."""
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    config = adapter_config(path)
    if config is None and any(key.startswith("base_model.model.") for key in state):
        raise ValueError(f"{clean(path.name)}: written by peft, whose adapter_config.json holds the scale; put it "
            "next to this file")  # fmt: skip
    found = layers(state, config, path.name)
    loaded = comfy.lora.load_lora(
        comfy.lora_convert.convert_lora(readable(found)), comfy.lora.model_lora_keys_unet(model.model, {})
    )
    model = model.clone()
    added = set(model.add_patches(loaded, strength))
    if not found or len(found) != len(added):
        raise ValueError(
            f"{clean(path.name)}: {len(found) - len(added)} of its {len(found)} layers are not in this model, and "
            "would be left out; take the base model that it was trained on, or another LoRA file"
        )
    return model
