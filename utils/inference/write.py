"""A map to its files: every format, in the axes that are wanted, each file atomic."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from utils import __version__
from utils.image_io import geometry
from utils.image_io.files import SIXTEEN, save_png, to_16_bits, write_exr
from utils.inference.output import FOV, Output
from utils.inference.prediction import Prediction, uncertainty_picture
from utils.kinds.base import PROGRAM
from utils.system.atomic import make_folder, save, save_bytes, save_npy


def write_prediction(
    prediction: Prediction, folder: Path, name: str, output: Output, image: Image.Image | None = None
) -> None:
    """Write one map to `folder`/predicted/`name`, and its uncertainty, if it has one, to `folder`/uncertainty/.

    name: of the 8-bit file. image: RGB, of the map's size; for meshes only.
    """
    write(prediction, folder / "predicted" / name, output, image)
    if prediction.uncertainty is not None:
        write_uncertainty(prediction, folder / "uncertainty" / name)


def write(prediction: Prediction, path: Path, output: Output, image: Image.Image | None = None) -> None:
    """Write one map in all formats next to `path`, <stem>.png: 8 bits as the released script does; <stem>_16bit.png;
    <stem>.npy, .exr, .glb, .ply. See `write_prediction` for `image`.
    """
    make_folder(path.parent, "--output_dir")
    kind, formats = prediction.intrinsic.map_kind, output.formats
    turned, about = replace(prediction, map=kind.turned(prediction.map, output)), metadata(prediction, output)
    values = turned.values if {"npy", "exr", "png16"} & set(formats) else np.empty(0)
    if "npy" in formats:
        save_npy(path.with_suffix(".npy"), values)
    if "exr" in formats:
        save(path.with_suffix(".exr"), lambda part: write_exr(part, *kind.exr(values, about)))
    if "png16" in formats:
        shares, scale = kind.shares(values)
        save_png(path.with_name(f"{path.stem}{SIXTEEN}.png"), to_16_bits(shares), about | scale)
    if image is not None and kind.has_surface and output.meshes:
        write_meshes(prediction, path, output, image)
    if "png" in formats:
        save_png(path, turned.image, about)


def metadata(prediction: Prediction, output: Output) -> dict[str, str]:
    """Metadata of a file: task, meaning of the values, base, LoRA and its SHA-256, program."""
    key, meaning = output.convention(prediction.intrinsic)
    about = {"task": prediction.intrinsic.name, key: meaning}
    return about | dict(prediction.facts) | {"software": f"{PROGRAM} {__version__}"}


def write_meshes(prediction: Prediction, path: Path, output: Output, image: Image.Image) -> None:
    """<stem>.glb and <stem>.ply of a depth, as `utils.image_io.geometry` says; their metadata too."""
    if output.near is None or output.far is None:
        raise ValueError("near and far are needed")
    places = geometry.points(geometry.metres(prediction.values, output.near, output.far), output.fov or FOV)
    about: dict[str, object] = {**metadata(prediction, Output()), "axes": "x right, y up, z toward the viewer; metres"}
    about |= {"near": output.near, "far": output.far, "fov_degrees_across_width": output.fov or FOV}
    for name in output.meshes:
        make = geometry.glb if name == "glb" else geometry.ply
        save_bytes(path.with_suffix(f".{name}"), make(places, image, about))


def write_uncertainty(prediction: Prediction, path: Path) -> None:
    """Write an uncertainty (H,W) as float32 .npy and as an image of fixed scale (`uncertainty_picture`)."""
    if prediction.uncertainty is not None:
        make_folder(path.parent, "--output_dir")
        save_npy(path.with_suffix(".npy"), prediction.uncertainty.numpy())
        save_png(path, uncertainty_picture(prediction.uncertainty, prediction.intrinsic))
