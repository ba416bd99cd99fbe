"""A folder of pictures in, a folder of maps out: reading, naming and writing for the inference scripts."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataloaders.images import Crop, read_rgb
from utils.durable import replace
from utils.errors import InputError
from utils.visualize import map_to_uint8, map_to_values


def pick_device(wanted: str | None, default: torch.device) -> torch.device:
    """The device named by --device, or `default`. Raises InputError where this machine has none of that name."""
    try:
        device = torch.device(wanted or default)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise InputError(f"--device={wanted}: {reason}; try cpu, or leave it out") from None
    return device


def output_names(files: list[Path], task: str) -> dict[Path, str]:
    """Input file -> <stem>_<task>.png. Raises InputError where two inputs would write the same file."""
    names: dict[str, Path] = {}
    for file in files:
        name = f"{file.stem}_{task}.png"
        if name in names:
            raise InputError(f"{names[name]} and {file} would both be written as {name}: rename one of them")
        names[name] = file
    return {file: name for name, file in names.items()}


def read_batch(files: list[Path], resolution: int, failed: list[str]) -> dict[Path, Tensor]:
    """File -> (3,R,R) in [-1,1]; a file that cannot be read is left out and its error appended to `failed`."""
    batch = {}
    for file in files:
        try:
            rgb = read_rgb(file)
            batch[file] = Crop.of(*rgb.size, resolution).picture(rgb)
        except InputError as error:
            failed.append(str(error))
    return batch


def write(drawn: Tensor, task: str, path: Path, with_npy: bool) -> None:
    """Write one map (3,R,R) as the released script does, and as float32 .npy where asked for; whole or not at all."""
    try:
        if with_npy:
            values = map_to_values(task, drawn)
            replace(path.with_suffix(".npy"), lambda part: part.write_bytes(npy_bytes(values)))
        picture = Image.fromarray(map_to_uint8(task, drawn))
        replace(path, lambda part: picture.save(part, "PNG"))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def npy_bytes(values: np.ndarray) -> bytes:
    """The content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()
