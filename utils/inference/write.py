"""A map to its files: every format, in the axes that are wanted, each file atomic."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils import __version__
from utils.inference.ensemble import uncertainty_picture
from utils.inference.output import FOV, Output
from utils.inference.prediction import Prediction
from utils.intrinsics import Intrinsic
from utils.maps import geometry
from utils.maps.conventions import to_frame, to_linear
from utils.maps.deep import png16, to_16_bits, write_exr
from utils.maps.files import SIXTEEN
from utils.maps.known import PROGRAM
from utils.system.atomic import make_folder, save, save_bytes, save_npy, save_png

CHANNELS = {"normals": "XYZ", "depth": "ZY", "colour": "RGB"}  # of EXR; Blender shows Z alone as black, and reads Y


def write_prediction(
    prediction: Prediction, folder: Path, name: str, output: Output, image: Image.Image | None = None
) -> None:
    """Write one map to `folder`/predicted/`name`, and its uncertainty, if it has one, to `folder`/uncertainty/.

    name: of the 8-bit picture. image: RGB, of the map's size; of meshes only.
    """
    write(prediction, folder / "predicted" / name, output, image)
    if prediction.uncertainty is not None:
        write_uncertainty(prediction, folder / "uncertainty" / name)


def write(prediction: Prediction, path: Path, output: Output, image: Image.Image | None = None) -> None:
    """Write one map in all formats beside `path`, <stem>.png: 8 bits as the released script does; <stem>_16bit.png;
    <stem>.npy, .exr, .glb, .ply. See `write_prediction` for `image`.
    """
    make_folder(path.parent, "--output_dir")
    turned, about = turn(prediction, output), metadata(prediction, output)
    intrinsic, formats = prediction.intrinsic, output.formats
    values = turned.values if {"npy", "exr", "png16"} & set(formats) else np.empty(0)
    if "npy" in formats:
        save_npy(path.with_suffix(".npy"), values)
    if "exr" in formats:
        save(path.with_suffix(".exr"), lambda part: write_exr(part, *exr(values, intrinsic, about)))
    if "png16" in formats:
        shares, scale = _shares(values, intrinsic)
        save_bytes(path.with_name(f"{path.stem}{SIXTEEN}.png"), png16(to_16_bits(shares), about | scale))
    if image is not None and intrinsic.kind == "depth" and output.meshes:
        write_meshes(prediction, path, output, image)
    if "png" in formats:
        save_png(path, turned.image, about)


def turn(prediction: Prediction, output: Output) -> Prediction:
    """The prediction in the axes, and with the polarity, of the files."""
    kind, values = prediction.intrinsic.kind, prediction.map
    if kind == "normals" and output.frame != "opencv":
        values = torch.from_numpy(to_frame(values.permute(1, 2, 0).numpy(), output.frame)).permute(2, 0, 1)
    if kind == "depth" and output.invert_depth:
        values = -values
    return replace(prediction, map=values)


def metadata(prediction: Prediction, output: Output) -> dict[str, str]:
    """What a file says of itself: task, meaning of the values, base, LoRA and its SHA-256, program."""
    key, meaning = output.convention(prediction.intrinsic)
    about = {"task": prediction.intrinsic.name, key: meaning}
    return about | dict(prediction.facts) | {"software": f"{PROGRAM} {__version__}"}


def exr(values: np.ndarray, intrinsic: Intrinsic, about: dict[str, str]) -> tuple[np.ndarray, str, dict[str, str]]:
    """(values, channels, header) of an EXR. Colours are decoded to linear light, which every reader of EXR expects;
    depth comes twice, as Z and as Y.
    """
    if intrinsic.kind == "depth":
        values = np.stack([values, values], axis=-1)
    if intrinsic.kind == "colour":
        about = about | {"colour_space": "linear light, sRGB's primaries, up to one scale"}
        values = to_linear(values) if intrinsic.coding == "srgb" else values
    return values, "Y" if intrinsic.kind == "colour" and intrinsic.grey else CHANNELS[intrinsic.kind], about


def write_meshes(prediction: Prediction, path: Path, output: Output, image: Image.Image) -> None:
    """<stem>.glb and <stem>.ply of a depth, as `utils.maps.geometry` says; their metadata too."""
    if output.near is None or output.far is None:
        raise ValueError("near and far are needed")
    places = geometry.points(geometry.metres(prediction.values, output.near, output.far), output.fov or FOV)
    about: dict[str, object] = {**metadata(prediction, Output()), "axes": "x right, y up, z toward the viewer; metres"}
    about |= {"near": output.near, "far": output.far, "fov_degrees_across_width": output.fov or FOV}
    for name in output.meshes:
        make = geometry.glb if name == "glb" else geometry.ply
        save_bytes(path.with_suffix(f".{name}"), make(places, image, about))


def _shares(values: np.ndarray, intrinsic: Intrinsic) -> tuple[np.ndarray, dict[str, str]]:
    """Values -> [0,1] for 16 bits, and which values 0 and 65535 stand for: depth's least and largest."""
    if intrinsic.kind == "depth":
        low, high = float(values.min()), float(values.max())
        return (values - low) / max(high - low, 1e-12), {"value_at_0": repr(low), "value_at_65535": repr(high)}
    if intrinsic.kind == "normals":
        return values / 2 + 0.5, {"value_at_0": "-1", "value_at_65535": "1"}
    return values, {"value_at_0": "0", "value_at_65535": "1"}


def write_uncertainty(prediction: Prediction, path: Path) -> None:
    """Write an uncertainty (H,W) as float32 .npy and as a picture of fixed scale (`uncertainty_picture`)."""
    if prediction.uncertainty is not None:
        make_folder(path.parent, "--output_dir")
        save_npy(path.with_suffix(".npy"), prediction.uncertainty.numpy())
        save_png(path, uncertainty_picture(prediction.uncertainty, prediction.intrinsic))
