"""LoRA files: their names, reading and writing."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from utils.errors import InputError

SAFETENSORS, BIN = "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"
CONV_IN = "conv_in.safetensors"  # beside them, where the UNet's conv_in is not the base model's own


def read_lora(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """State dict, metadata and file name of a .safetensors file, a .bin file, or a folder that holds one.

    Pickles are only read with `weights_only=True`, so a file that would run code is refused.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (SAFETENSORS, BIN, "pytorch_model.bin") if (path / name).is_file()]
        if not found:
            raise InputError(f"{path}: holds neither {SAFETENSORS} nor {BIN}")
        path = found[0]
    if not path.is_file():
        raise InputError(f"{path}: no such LoRA file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}, str(path)  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own zoo of exceptions; all mean the same to the caller
        raise InputError(f"{path}: not a readable LoRA file ({' '.join(str(error).split())[:200]})") from None
    return state, {}, str(path)
