"""A whole Stable Diffusion in one .safetensors or .ckpt file: its architecture, by its keys, and its weights.

Model sites and ComfyUI's folders have such files. torch is imported only for the weights.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import did_you_mean
from utils.errors import InputError
from utils.system.atomic import json_object

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".ckpt")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
TEXT = {"sd1": "cond_stage_model.transformer.", "sd2": "cond_stage_model.model."}  # OpenAI's CLIP, OpenCLIP
NAMES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x"}
OTHERS = {  # part of a key -> the model that has it; the first match counts
    "lora_": "a LoRA", ".lora": "a LoRA", "control_model.": "a ControlNet",
    "conditioner.embedders.1.": "Stable Diffusion XL", "conditioner.embedders.0.": "Stable Diffusion XL's refiner",
    "joint_blocks.": "Stable Diffusion 3", "double_stream_modulation_img.": "Flux 2", "double_blocks.": "Flux",
    "clip_txt_mapper.": "Stable Cascade", "input_blocks.7.1.transformer_blocks.9.": "Stable Diffusion XL",
}  # fmt: skip
PART_OF_A_FOLDER = ("down_blocks.", "encoder.down_blocks.", "text_model.", "decoder.mid_block.")
_PICKLED = (  # classes that trainers of 2022 left in .ckpt files next to the weights: read as empty shells
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
)


class _Shell:
    """Stands in for the classes in `_PICKLED`: attributes, and nothing that runs."""


def is_single_file(name: str) -> bool:
    """True if a base's name means one file rather than a folder or a hub repository."""
    path = Path(name)
    return path.is_file() or (path.suffix in SUFFIXES and not path.is_dir())


def check_file(path: Path) -> None:
    """InputError, without importing torch, where `path` is missing or, if it is .safetensors, not a base model."""
    if not path.is_file():
        there = [str(one) for one in path.parent.glob("*") if one.suffix in SUFFIXES] if path.parent.is_dir() else []
        hint = did_you_mean(str(path), there)
        raise InputError(f"{path}: no such checkpoint file{hint}; pass a file, a model folder or a hub name")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: not a checkpoint: a base model is a {' or '.join(SUFFIXES)} file, or a folder")
    if path.suffix == ".safetensors":
        architecture(_header(path), path)


def architecture(keys: Iterable[str], path: Path) -> str:
    """ "sd1" or "sd2". Otherwise InputError, which names the kind of file it is or the missing part."""
    keys = list(keys)
    for sign, name in OTHERS.items():
        if any(sign in key for key in keys):
            raise InputError(f"{path}: is {name}; a base here is Stable Diffusion 1.x or 2.x, one file with all parts")
    if any(key.startswith(PART_OF_A_FOLDER) for key in keys):
        raise InputError(f"{path}: is one part of a model in diffusers' format; pass the whole model's folder")
    found = [kind for kind, prefix in TEXT.items() if any(key.startswith(prefix) for key in keys)]
    has = {"UNet": CONV_IN in keys, "VAE": any(key.startswith(VAE) for key in keys), "text encoder": bool(found)}
    if not any(has.values()):
        example = f", e.g. {keys[0]}" if keys else ""
        raise InputError(
            f"{path}: not a Stable Diffusion checkpoint: none of its {len(keys)} keys is known{example}; "
            "pass one that holds model.diffusion_model, first_stage_model and cond_stage_model"
        )
    if missing := [part for part, there in has.items() if not there]:
        raise InputError(f"{path}: holds no {' and no '.join(missing)}; take the full checkpoint, with all parts")
    return found[0]


def read_checkpoint(path: Path) -> tuple[str, "dict[str, Tensor]"]:
    """("sd1" or "sd2", weights by key) of a checkpoint. Pickles run no code: they are read with `weights_only`.

    Raises:
        InputError: it is missing, unreadable, or not a whole Stable Diffusion 1.x or 2.x.
    """
    check_file(path)
    try:
        state = _safetensors(path) if path.suffix == ".safetensors" else _pickle(path)
    except Exception as error:  # each format has its own exceptions; all mean the same to the caller
        raise _unreadable(path, error) from None
    return architecture(state, path), state


def _header(path: Path) -> list[str]:
    """The keys of a .safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is cut off, or it is another kind of file")
            header = json_object(file.read(length))
        return [key for key in header if key != "__metadata__"]
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _safetensors(path: Path) -> "dict[str, Tensor]":
    from safetensors.torch import load_file

    return load_file(path)


def _pickle(path: Path) -> "dict[str, Tensor]":
    import torch

    with torch.serialization.safe_globals([(_Shell, name) for name in _PICKLED]):
        state = torch.load(path, map_location="cpu", weights_only=True)
    while isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not weights by name")
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{path}: not a readable checkpoint ({reason}); download or copy it again")
