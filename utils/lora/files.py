"""LoRA files: their names, and reading them. torch is imported only for tensors, and for files that are pickles."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from utils.errors import InputError
from utils.system.repositories import download, looks_like_one

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS, BIN = "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"
NAMES = (SAFETENSORS, BIN, "pytorch_model.bin")  # in a folder the first of them is the LoRA
CONV_IN = "conv_in.safetensors"  # beside them, where the UNet's conv_in is not the base model's own
_NUMPY = {  # safetensors' names of types -> numpy's and torch's; bf16, which numpy lacks, is read as the bits it has
    "F64": ("<f8", "float64"), "F32": ("<f4", "float32"), "F16": ("<f2", "float16"), "BF16": ("<u2", "bfloat16"),
    "I64": ("<i8", "int64"), "I32": ("<i4", "int32"), "I16": ("<i2", "int16"), "I8": ("i1", "int8"),
    "U8": ("u1", "uint8"), "BOOL": ("?", "bool"),
}  # fmt: skip


class LoraFile(NamedTuple):
    """A LoRA as it was read: weights by key, the header's metadata (empty for .bin files), the file's path."""

    state: "Mapping[str, Tensor]"
    metadata: dict[str, str]
    path: str


def read_lora(path: str | Path) -> LoraFile:
    """Read a .safetensors file, a .bin file, or the one in a folder or in the hub's repository `owner/name`, as torch
    tensors on the CPU.

    Pickles are only read with `weights_only=True`, so a file that would run code is refused.
    """
    import torch
    from safetensors import safe_open

    path = _find(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return LoraFile(state, file.metadata() or {}, str(path))
        return LoraFile(torch.load(path, map_location="cpu", weights_only=True), {}, str(path))
    except Exception as error:  # each format has its own zoo of exceptions; all mean the same to the caller
        raise _unreadable(path, error) from None


def read_arrays(path: str | Path) -> tuple[LoraFile, dict[str, str]]:
    """`read_lora` as numpy arrays, and each key's type as torch names it; bf16 comes as the same numbers in fp32.

    A .safetensors file is read without importing torch.
    """
    path, types = _find(path), {}
    if path.suffix == ".safetensors":
        from safetensors import deserialize

        try:
            content = path.read_bytes()
            entries = deserialize(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        except Exception as error:
            raise _unreadable(path, error) from None
        if all(entry["dtype"] in _NUMPY for _, entry in entries):
            types = {key: _NUMPY[entry["dtype"]][1] for key, entry in entries}
            arrays = {key: _array(entry) for key, entry in entries}
            return LoraFile(arrays, header.get("__metadata__", {}), str(path)), types
    state, metadata, name = read_lora(path)
    if isinstance(state, Mapping):  # else it is no LoRA, which `parse_layers` says
        tensors = {key: value for key, value in state.items() if hasattr(value, "numpy")}
        types = {key: str(value.dtype).removeprefix("torch.") for key, value in tensors.items()}
        state = {**state, **{key: value.detach().double().numpy() for key, value in tensors.items()}}
    return LoraFile(state, metadata, name), types


def is_on_hub(name: str | Path) -> bool:
    """Whether a LoRA of that name is to be looked for on the hub: owner/name, and nothing here is called like it."""
    path = Path(name)
    local = path.exists() or path.parent.is_dir() or path.suffix in (".safetensors", ".bin")
    return not local and looks_like_one(str(name))


def _find(path: str | Path) -> Path:
    """The LoRA file that `path` is, that lies in the folder `path`, or in the hub's repository of that name."""
    path = download(str(path), (*NAMES, CONV_IN)) if is_on_hub(path) else Path(path)
    if path.is_dir():
        found = [path / name for name in NAMES if (path / name).is_file()]
        if not found:
            below = sorted({str(file.parent) for name in NAMES for file in path.glob(f"*/{name}")})
            hint = f"; {', '.join(below[:4])} {'does' if len(below) == 1 else 'do'}" if below else ""
            raise InputError(f"{path}: holds neither {SAFETENSORS} nor {BIN}{hint}")
        path = found[0]
    if not path.is_file():
        raise InputError(f"{path}: no such LoRA file")
    return path


def _array(entry: dict) -> np.ndarray:
    array = np.frombuffer(entry["data"], _NUMPY[entry["dtype"]][0])
    if entry["dtype"] == "BF16":  # the upper half of an fp32's bits
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(entry["shape"])


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: not a readable LoRA file ({' '.join(str(error).split())[:200]})")
