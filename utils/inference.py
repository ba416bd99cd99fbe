"""A folder of pictures in, a folder of maps out: reading, naming and writing for the inference scripts."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dataloaders.images import Crop, read_rgb
from utils.errors import InputError
from utils.visualize import map_to_uint8, map_to_values


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
    """Write one map (3,R,R) as the released script does, and as float32 .npy where asked for."""
    Image.fromarray(map_to_uint8(task, drawn)).save(path)
    if with_npy:
        np.save(path.with_suffix(".npy"), map_to_values(task, drawn))
