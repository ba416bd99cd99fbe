"""LoRA files: their names, and reading them. torch is imported only for tensors, and for files that are pickles."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from utils.errors import InputError, note
from utils.lora.keys import split_key
from utils.lora.scale import CONFIG, HEADER, STATED
from utils.lora.targets import ALL, kind_of
from utils.system.atomic import check_sums
from utils.system.network import download, files_of, looks_like_one

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".bin")
SAFETENSORS, BIN = "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"
PEFT = ("adapter_model.safetensors", "adapter_model.bin")  # peft's save_pretrained, with CONFIG next to them
NAMES = (SAFETENSORS, BIN, "pytorch_model.bin", *PEFT)  # in a folder the first of them is the LoRA
CONV_IN = "conv_in.safetensors"  # next to them, where the UNet's conv_in is not the base model's own
_NUMPY = {  # safetensors' names of types -> numpy's and torch's; bf16, which numpy lacks, is read as the bits it has
    "F64": ("<f8", "float64"), "F32": ("<f4", "float32"), "F16": ("<f2", "float16"), "BF16": ("<u2", "bfloat16"),
    "I64": ("<i8", "int64"), "I32": ("<i4", "int32"), "I16": ("<i2", "int16"), "I8": ("i1", "int8"),
    "U8": ("u1", "uint8"), "BOOL": ("?", "bool"),
}  # fmt: skip

_TYPES = {name: both[1] for name, both in _NUMPY.items()} | {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_JOIN = "save the LoRA as one file (save_pretrained with a larger max_shard_size)"


class LoraFile(NamedTuple):
    """A LoRA as it was read: weights by key, the header's metadata (empty for .bin files), the file's path.

    peft's adapter_config.json is in the metadata, as text under its own name.
    """

    state: "Mapping[str, Tensor]"
    metadata: dict[str, str]
    path: str


def read_lora(path: str | Path) -> LoraFile:
    """Read a .safetensors file, a .bin file, or the one in a folder or in the hub's repository `owner/name`, as torch
    tensors on the CPU. One file of a repository is `owner/name/file`.

    Pickles are only read with `weights_only=True`, so a file that would run code is refused.
    """
    import torch
    from safetensors import safe_open

    path = find_lora(path)
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="pt") as file:
                state = {key: _widened(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        else:
            state, metadata = torch.load(path, map_location="cpu", weights_only=True), {}
            if isinstance(state, Mapping):
                state = {key: _widened(value) for key, value in state.items()}
    except Exception as error:  # each format has its own zoo of exceptions; all mean the same to the caller
        raise _unreadable(path, error) from None
    return LoraFile(state, metadata | _config(path, metadata, state), str(path))


def _widened(value: object) -> object:
    """fp8 tensors in fp32: the same numbers, in a type that can be multiplied. All else as it is."""
    dtype = str(getattr(value, "dtype", ""))
    return value.float() if dtype.startswith("torch.float8") else value  # type: ignore[attr-defined]


def _config(path: Path, metadata: Mapping[str, str], keys: object) -> dict[str, str]:
    """{CONFIG: its text} for a file of peft's save_pretrained, whose scale stands only there; else {}.

    Such a file is known by its name, or by its keys where it was renamed: then a note where there is no CONFIG.
    """
    renamed = path.name not in PEFT
    if renamed and not _are_pefts_own(keys):
        return {}
    config = path.with_name(CONFIG)
    try:
        return {CONFIG: config.read_text(encoding="utf-8")}
    except UnicodeDecodeError:
        raise InputError(f"{config}: not a text file; copy peft's own next to {path.name}") from None
    except OSError:
        if HEADER in metadata:
            return {}
        if renamed:
            if not any(key in metadata for key in (*STATED, "method")):
                note(
                    f"{path}: has the keys of peft, which states the scale in {CONFIG} only; it is not next to the "
                    "file, so scale 1 is taken"
                )
            return {}
        raise InputError(
            f"{path}: {CONFIG} is not next to it, and only that states the scale; copy it from where the LoRA is from"
        ) from None


def _are_pefts_own(keys: object) -> bool:
    """True if all weights are of a UNet's layers, under the keys of peft's save_pretrained, without alpha tensors."""
    if not isinstance(keys, Mapping) or not keys:
        return False
    for key in map(str, keys):
        split = split_key(key)
        if not key.startswith("base_model.model.") or split is None or kind_of(split[0]) not in ALL:
            return False
        if split[1] == "alpha":
            return False
    return True


def brings_conv_in(path: str | Path, metadata: Mapping[str, str]) -> bool:
    """True if the CONV_IN next to a LoRA belongs to it: not if the LoRA's header names another method."""
    return metadata.get("method", "augunet") == "augunet" and (Path(path).parent / CONV_IN).is_file()


def read_arrays(path: str | Path) -> tuple[LoraFile, dict[str, str]]:
    """`read_lora` as numpy arrays, and each key's type in the file as torch names it. Types that numpy lacks (bf16,
    fp8) come as the same numbers in a wider one.

    A .safetensors file is read without importing torch, unless it holds rare types such as fp8.
    """
    path, types = find_lora(path), {}
    if path.suffix.lower() == ".safetensors":
        from safetensors import deserialize

        try:
            content = path.read_bytes()
            entries = deserialize(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        except Exception as error:
            raise _unreadable(path, error) from None
        types = {key: _TYPES.get(entry["dtype"], entry["dtype"]) for key, entry in entries}
        if all(entry["dtype"] in _NUMPY for _, entry in entries):
            arrays = {key: _array(entry) for key, entry in entries}
            metadata = header.get("__metadata__", {})
            return LoraFile(arrays, metadata | _config(path, metadata, arrays), str(path)), types
    state, metadata, name = read_lora(path)
    if isinstance(state, Mapping):  # else it is no LoRA, which `parse_layers` says
        tensors = {key: value for key, value in state.items() if hasattr(value, "numpy")}
        types = types or {key: str(value.dtype).removeprefix("torch.") for key, value in tensors.items()}
        try:
            state = {**state, **{key: _numbers(value) for key, value in tensors.items()}}
        except Exception as error:  # a type that torch has a name for, and no arithmetic
            raise _unreadable(path, error) from None
    return LoraFile(state, metadata, name), types


def _numbers(tensor: "Tensor") -> np.ndarray:
    """In float64, or in the tensor's own type where that is not a float: which `parse_layers` refuses."""
    return (tensor.detach().double() if tensor.is_floating_point() else tensor).numpy()


def is_on_hub(name: str | Path) -> bool:
    """True if a LoRA of that name is to be found on the hub: owner/name or owner/name/file, and not here."""
    path = Path(name)
    if path.suffix in SUFFIXES and len(path.parts) == 3:
        return not Path(path.parts[0]).is_dir() and looks_like_one(str(path.parent))
    local = path.exists() or path.parent.is_dir() or path.suffix in SUFFIXES
    return not local and looks_like_one(str(name))


def find_lora(path: str | Path) -> Path:
    """The LoRA file `path`, or the one in the folder `path` or in the hub's repository of that name, downloaded.

    Raises InputError where there is none, with the names of the files that are there.
    """
    on_hub = is_on_hub(path)
    if on_hub and Path(path).suffix in SUFFIXES:
        path = _fetched(str(Path(path).parent), Path(path).name)
    elif on_hub or Path(path).is_dir():
        names = _listed(path)
        name = next((name for name in NAMES if name in names), None)
        if name is None:
            raise InputError(f"{path}: holds neither {SAFETENSORS} nor {BIN}{_instead(path, names)}")
        path = _fetched(str(path), name) if on_hub else Path(path) / name
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such LoRA file")
    if path.suffix.lower() == ".json" or _SHARD.search(path.name):
        raise InputError(f"{path}: not a whole LoRA file, but the list of its parts, a part or settings; {_JOIN}")
    check_sums(path)
    return path


def is_named_for(name: str, task: str) -> bool:
    """True if a file's name has the word `task` or its plural."""
    return bool({task, f"{task}s"} & set(re.split("[^a-z]+", Path(name).stem.lower())))


def named_for(path: str | Path, tasks: Sequence[str]) -> dict[str, str]:
    """Task -> LoRA file, for a folder or a repository of the hub whose files have names of their own: those with the
    word "normal" or "normals" in them are for normals, and so on. Tasks without a file are left out.

    Empty for a single LoRA: a file, or a folder or repository with a name of NAMES. Raises InputError, with the names
    that are there, for a task with several files, and where there is none for the only one of `tasks`.
    """
    names = [] if Path(path).suffix in SUFFIXES else _listed(path)
    there = [] if set(names) & set(NAMES) else _own_names(names)
    found: dict[str, str] = {}
    for task in tasks:
        fit = [name for name in there if is_named_for(name, task)]
        if len(fit) > 1:
            raise InputError(f"{path}: several LoRAs for {task}: {_few(fit)}; pass one as --lora {path}/{fit[0]}")
        if fit:
            found[task] = f"{path}/{fit[0]}"
        elif len(tasks) == 1 and there:
            raise InputError(
                f"{path}: no file there is named for {task}: {_few(there)}; pass another --task, or a file as --lora "
                f"{path}/{there[0]}"
            )
    return found


def _listed(path: str | Path) -> list[str]:
    """Files of a repository, or of a folder and the LoRAs directly below it, by their relative paths; [] of a file."""
    if is_on_hub(path):
        return sorted(files_of(str(path)))
    found = (file for pattern in ("*", *(f"*/{name}" for name in NAMES)) for file in Path(path).glob(pattern))
    return sorted(file.relative_to(path).as_posix() for file in found if file.is_file())


def _own_names(names: Sequence[str]) -> list[str]:
    """Whole files that may be LoRAs."""
    found = [name for name in names if "/" not in name and name != CONV_IN and name.endswith(SUFFIXES)]
    return [] if any(map(_SHARD.search, found)) else found


def _fetched(repository: str, name: str) -> Path:
    """The file `name` of a repository, downloaded with what belongs to it."""
    there = files_of(repository)
    if name not in there:
        raise InputError(f"{repository}: has no file {name}; there: {_few(there)}")
    return download(repository, (name, CONV_IN, CONFIG)) / name


def _instead(path: str | Path, names: Sequence[str]) -> str:
    """What a folder or repository without a name of NAMES holds, and what to do."""
    below = sorted({f"{path}/{name.rpartition('/')[0]}" for name in names if name.rpartition("/")[2] in NAMES})
    if parts := [name for name in names if _SHARD.search(name) and name.endswith(SUFFIXES)]:
        return f"; its LoRA is in {len(parts)} parts ({parts[0]}): {_JOIN}"
    if below:
        return f"; {_few(below)} {'does' if len(below) == 1 else 'do'}"
    if there := _own_names(names):
        return f"; pass the file: {_few(there)}"
    return f"; there: {_few(names)}" if names else ""


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _array(entry: dict) -> np.ndarray:
    array = np.frombuffer(entry["data"], _NUMPY[entry["dtype"]][0])
    if entry["dtype"] == "BF16":  # the upper half of an fp32's bits
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(entry["shape"])


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    start = b""
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        reason = "a pointer of Git LFS: git lfs pull fetches the file itself"
    elif start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        reason = "a web page: download the file itself"
    elif "weights only load failed" in reason.lower():  # torch's text tells how to run the code in the file
        reason = "not a pickle of tensors alone; others could run code and are never opened"
    return InputError(f"{path}: not a readable LoRA file ({reason})")
