"""Reading an Intrinsic LoRA's header, and patching it into ComfyUI's model so that no key is left over."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils

PROMPTS = {"normal": "surface normal", "depth": "depth map", "albedo": "albedo", "shading": "shading"}


@dataclass(frozen=True)
class Facts:
    """What a LoRA says of itself: task, prompt, timestep, training size in pixels, and what its values mean."""

    task: str
    prompt: str
    timestep: int | None
    resolution: int
    convention: str


def header(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; {} for other files, which have none."""
    if path.suffix != ".safetensors":
        return {}
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little"))).get("__metadata__", {})


def facts(path: Path, task: str | None = None) -> Facts:
    """ValueError where the file does not say its task and none is given, or where it was made by diffusion."""
    said = header(path)
    if said.get("method", "single-step") != "single-step":
        raise ValueError(
            f"{path.name}: made with {said['method']}: it wants an 8-channel conv_in and 25 steps of its own, for "
            "which ComfyUI's Stable Diffusion has no place; run inference_augunet.py"
        )
    task = task or said.get("task")
    if task not in PROMPTS:
        raise ValueError(f"{path.name}: its header names no known task ({task}); choose one in the node")
    own = said if said.get("task", task) == task else {}
    convention = next((said[key] for key in ("frame", "polarity", "colour_space") if key in own), "")
    timestep = int(said["timestep"]) if "timestep" in said else None
    prompt = own.get("prompt", PROMPTS[task])
    return Facts(task, prompt, timestep, int(said.get("resolution", 512)), convention)


def readable(state: dict[str, Any]) -> dict[str, Any]:
    """peft's keys (of LoRAs on all layers), which ComfyUI does not know, as kohya's, which it does."""
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"(?:unet\.)?(.+)\.lora_(A|B)\.weight", key)
        layer = f"lora_unet_{match[1].replace('.', '_')}.lora_{'down' if match[2] == 'A' else 'up'}" if match else ""
        renamed[f"{layer}.weight" if match else key] = value
    return renamed


def patched(model, path: Path, strength: float = 1.0):
    """A clone of ComfyUI's model with the LoRA. ValueError where any of its layers found none in the model."""
    state = readable(comfy.utils.load_torch_file(str(path), safe_load=True))
    downs = [key for key in state if re.search(r"(lora_down|_lora\.down|lora\.down)\.weight$", key)]
    loaded = comfy.lora.load_lora(
        comfy.lora_convert.convert_lora(state), comfy.lora.model_lora_keys_unet(model.model, {})
    )
    model = model.clone()
    found = set(model.add_patches(loaded, strength))
    if not downs or len(downs) != len(found):
        raise ValueError(
            f"{path.name}: {len(downs) - len(found)} of its {len(downs)} layers are not in this model, and would "
            "be left out; take the base model that it was trained on, or another LoRA file"
        )
    return model
