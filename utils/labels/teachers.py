"""Models that predict pseudo labels, behind one call, each with its conventions turned into this project's.

Their predictions, by their documentation:
    Marigold depth      affine-invariant, 0 = near plane, 1 = far plane; or disparity, as its config says
    Marigold normals    unit vectors, x right, y up, z toward the viewer (opengl)
    Marigold IID        `target_properties` of the config names each target's colour space: appearance's albedo is
                        sRGB, lighting's albedo and shading are linear, up to one scale
    ZoeDepth, GLPN, DepthPro, metric Depth Anything    depth in metres
    relative Depth Anything, DPT (MiDaS)               disparity up to scale and shift: no depth can be had from it

How they fill in unknown pixels, in the libraries' code:
    DepthPro            inverse depth is clamped to 1e-4: sky is at exactly 10,000 m
    ZoeDepth            bin centres are clipped to the configured depths, 10 or 80 m
    GLPN, metric Depth Anything    a sigmoid times the largest depth: near it, but hardly ever at it
    relative Depth Anything, DPT   ReLU: sky is at exactly 0, the far end of the disparity
    Marigold            depth and disparity are clipped to [0,1], colours too; normals are normalised
`utils.labels.encoding.scene_pixels` keeps such values out of a label's range where they would cost the scene its grey
levels.

A supervised network for all four intrinsics can be a teacher too (`load_supervised`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from utils.errors import InputError
from utils.image_io.colour_space import to_srgb
from utils.kinds.axes import convert_frame
from utils.system.atomic import check_sums
from utils.system.network import require

NAMED = {  # (task, --teacher) -> hub name
    ("depth", "zoedepth"): "Intel/zoedepth-nyu-kitti",
    ("depth", "depth-anything-v2"): "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf",
    ("depth", "marigold"): "prs-eth/marigold-depth-v1-1",
    ("normal", "marigold"): "prs-eth/marigold-normals-v1-1",
    ("albedo", "marigold-iid"): "prs-eth/marigold-iid-appearance-v1-1",
    ("shading", "marigold-iid"): "prs-eth/marigold-iid-lighting-v1-1",
}
PIPELINES = {
    "depth": diffusers.MarigoldDepthPipeline,
    "normal": diffusers.MarigoldNormalsPipeline,
    "albedo": diffusers.MarigoldIntrinsicsPipeline,
    "shading": diffusers.MarigoldIntrinsicsPipeline,
}
METRIC, RELATIVE = ("zoedepth", "glpn", "depth_pro"), ("dpt",)  # transformers' model types
ABOUT = "intrinsics.json"
CHANNELS = {"normal": slice(0, 3), "depth": slice(3, 4), "albedo": slice(4, 7), "shading": slice(7, 10)}
MAPS = 10


@dataclass(frozen=True)
class Teacher:
    """predict: RGB image and its noise, one generator per member of the ensemble -> values of one task:

    normal (H,W,3) unit, x right, y down, z forward; depth (H,W), far = large; disparity (H,W), near = large. Albedo
    and shading (H,W,3), sRGB-coded in [0,1]. `about` identifies it, `conventions` has its own and this project's.
    """

    predict: Callable[[Image.Image, list[Generator]], np.ndarray]
    quantity: str  # normal, depth, disparity, albedo or shading
    about: dict[str, str]
    conventions: dict[str, str]


def about(name: str, revision: str | None, kind: str) -> dict[str, str]:
    """A teacher's name, class and revision; of a folder a digest of its file names, sizes and configurations."""
    who = {"name": name, "class": kind, "revision": revision or "main"}
    if Path(name).is_dir():
        digest = hashlib.sha256()
        for path in sorted(path for path in Path(name).rglob("*") if path.is_file()):
            digest.update(json.dumps([path.relative_to(name).as_posix(), path.stat().st_size]).encode())
            digest.update(path.read_bytes() if path.suffix == ".json" else b"")
        who |= {"name": str(Path(name).resolve()), "revision": f"sha256:{digest.hexdigest()[:16]}"}
    return who


def accept(name: str, quantity: str, predicts: str | None) -> None:
    if quantity == "disparity" and predicts is None:
        raise InputError(
            f"{name}: predicts disparity of unknown shift, from which no linear depth can be had; take a metric or "
            "depth model, or accept labels linear in disparity with --predicts disparity (score: --align disparity)"
        )


def depth_said(quantity: str, unit: str) -> dict[str, str]:
    labels = f"near = white, linear in {quantity}, between each picture's 2nd and 98th percentile"
    return {"teacher": f"{quantity}, {unit}", "labels": labels}


def load_teacher(
    task: str,
    teacher: str,
    revision: str | None,
    device: torch.device,
    dtype: torch.dtype,
    steps: int | None = None,
    resolution: int | None = None,
    frame: str = "opengl",
    predicts: str | None = None,
) -> Teacher:
    """A named teacher, a hub name or a local folder; Marigold pipelines and `utils.labels.teachers` for every task,
    transformers' for depth.

    steps, resolution: of Marigold; None: its config's. frame: the axes of its normals. predicts: "depth" or
    "disparity", where that is not known or not what its type says.
    Raises InputError where it cannot be loaded or does not predict `task`.
    """
    name = NAMED.get((task, teacher), teacher)
    if not Path(name).is_dir() and name.count("/") != 1:
        known = ", ".join(alias for each, alias in NAMED if each == task)
        raise InputError(f"--teacher {teacher}: no such folder, and not owner/model; named for {task}: {known}")
    if (Path(name) / ABOUT).is_file():
        return load_supervised(name, task, device, dtype)
    where: dict[str, str | bool | None] = {"revision": revision, "token": None}
    if not Path(name).is_dir():
        where["local_files_only"] = require(name, revision)
    kind = _pipeline_class(name, where)
    try:
        if kind is None:
            if task != "depth":
                raise InputError(f"{name}: --task {task} needs a {PIPELINES[task].__name__} (model_index.json)")
            return _transformers_depth(name, revision, device, dtype, predicts)
        if kind != PIPELINES[task].__name__:
            raise InputError(f"{name}: a {kind}; --task {task} needs a {PIPELINES[task].__name__}")
        pipe = PIPELINES[task].from_pretrained(name, torch_dtype=dtype, **where).to(device)
    except InputError:
        raise
    except Exception as error:  # OSError, HTTP errors, SafetensorError, missing files, ...: not available
        raise InputError(f"--teacher {name}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    pipe.set_progress_bar_config(disable=True)

    def call(picture: Image.Image, noise: list[Generator]) -> np.ndarray:
        generators = [Generator(device).manual_seed(one.initial_seed()) for one in noise]
        try:
            output = pipe(
                picture, num_inference_steps=steps, processing_resolution=resolution, ensemble_size=len(noise),
                generator=generators,
            )  # fmt: skip
        except (ImportError, ValueError) as error:  # scipy for ensembles of depth, resolutions that do not fit
            raise InputError(f"{name}: {' '.join(str(error).split())[:300]}") from None
        except NotImplementedError as error:  # resizing in bfloat16 on a CPU
            raise InputError(f"{name}: cannot compute in {dtype} on {device.type} ({error}); --dtype fp32") from None
        return output.prediction.astype(np.float64)

    return _marigold(task, call, pipe, about(name, revision, kind), frame, predicts)


def _pipeline_class(name: str, where: Mapping[str, str | bool | None]) -> str | None:
    """The class that model_index.json names; None without that file: not of diffusers."""
    try:
        return diffusers.DiffusionPipeline.load_config(name, **where).get("_class_name")
    except OSError as error:
        cause = error.__context__  # the hub's answer: only "no such file" in a repository that is there means that
        absent = isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError)
        if Path(name).is_dir() or absent:
            return None
        raise InputError(f"--teacher {name}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None


def _marigold(task: str, call: Callable, pipe: Any, who: dict[str, str], frame: str, predicts: str | None) -> Teacher:
    """The Marigold pipeline's predictions in this project's conventions."""
    if task == "normal":

        def predict(picture: Image.Image, noise: list[Generator]) -> np.ndarray:
            return convert_frame(call(picture, noise)[0], frame)

        said = {"teacher": f"normals, axes {frame}", "labels": "normals, x right, y down, z forward (opencv)"}
        return Teacher(predict, "normal", who, said)
    if task == "depth":
        quantity = predicts or pipe.config.prediction_type
        if quantity not in ("depth", "disparity"):
            raise InputError(f"{who['name']}: predicts {quantity!r}; say --predicts depth or disparity")
        accept(who["name"], quantity, predicts)
        return Teacher(lambda *args: call(*args)[0, ..., 0], quantity, who, depth_said(quantity, "affine-invariant"))
    properties = pipe.target_properties or {}
    names = properties.get("target_names", [])
    if task not in names:
        raise InputError(f"{who['name']}: predicts {', '.join(names) or 'unnamed targets'}, not {task}")
    space = properties[task].get("prediction_space", "srgb")
    scaled = bool(properties[task].get("up_to_scale", False))
    if space not in ("srgb", "linear"):
        raise InputError(f"{who['name']}: its {task} is in {space!r}, which is not converted to sRGB")

    def colours(picture: Image.Image, noise: list[Generator]) -> np.ndarray:
        values = call(picture, noise)[names.index(task)]
        values = values / max(np.percentile(values, 99), 1e-6) if scaled else values
        return np.clip(to_srgb(values) if space == "linear" else values, 0, 1)

    said = {"teacher": f"{task}, {space}{', up to scale' if scaled else ''}", "labels": f"{task}, sRGB-coded"}
    said |= {"scale": "each picture's 99th percentile in linear light is 1"} if scaled else {}
    return Teacher(colours, task, who, said)


def _transformers_depth(
    name: str, revision: str | None, device: torch.device, dtype: torch.dtype, predicts: str | None
) -> Teacher:
    """One of transformers' depth-estimation models."""
    pipe = transformers.pipeline("depth-estimation", model=name, revision=revision, device=device)
    pipe.model.to(dtype)
    config, quantity, metres = pipe.model.config, predicts, False
    if quantity is None:
        metric = config.model_type in METRIC or getattr(config, "depth_estimation_type", None) == "metric"
        relative = config.model_type in RELATIVE or getattr(config, "depth_estimation_type", None) == "relative"
        if not metric and not relative:
            raise InputError(
                f"{name}: what a {config.model_type} predicts is not known; say --predicts depth or disparity"
            )
        quantity, metres = "depth" if metric else "disparity", metric
    accept(name, quantity, predicts)

    def predict(picture: Image.Image, noise: list[Generator]) -> np.ndarray:
        values = _predicted(picture)
        return np.where(values > 0, values, np.nan) if metres else values  # nothing is 0 m away: not known

    def _predicted(picture: Image.Image) -> np.ndarray:
        outputs = pipe.forward(pipe.preprocess(picture))
        outputs["predicted_depth"] = outputs["predicted_depth"].float()  # NumPy, and postprocess, know no bfloat16
        if config.model_type != "zoedepth":
            return pipe.postprocess(outputs)["predicted_depth"].squeeze().double().cpu().numpy()
        # the library's own needs torchvision for this: undo the reflected border that the image processor added
        border = [int(3 * (side / 2) ** 0.5) if pipe.image_processor.do_pad else 0 for side in picture.size]
        size = [picture.height + 2 * border[1], picture.width + 2 * border[0]]
        whole = F.interpolate(outputs["predicted_depth"][None].cpu(), size, mode="bicubic")[0, 0]
        return whole.double().numpy()[border[1] : border[1] + picture.height, border[0] : border[0] + picture.width]

    who = about(name, revision, type(pipe.model).__name__)
    who |= {"commit": config._commit_hash} if getattr(config, "_commit_hash", None) else {}
    return Teacher(predict, quantity, who, depth_said(quantity, "metres" if quantity == "depth" else "affine"))


# A supervised network for all four intrinsics ----------------------------------------------------------------------


def predict_maps(network: diffusers.UNet2DModel, rgb: Tensor, patch: int) -> Tensor:
    """Images (B,3,H,W) in [-1,1] -> maps (B,10,H,W), not clamped, normals not of unit length."""
    inside = network(F.pixel_unshuffle(rgb, patch), torch.zeros(len(rgb), device=rgb.device)).sample
    return F.pixel_shuffle(inside, patch)


def load_supervised(name: str, task: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """A supervised network for all four intrinsics, in the folder `name`: diffusers' UNet2DModel, and the meaning of
    its channels.

    <folder>/config.json, diffusion_pytorch_model.safetensors     the network, timestep always 0
    <folder>/intrinsics.json                                      {"patch": 2, "resolution": 64}

    An image (3,H,W) in [-1,1] goes in, and its maps (10,H,W) come out: normal 0 to 2, x right, y down, z forward.
    Depth 3, near = 1, far = -1, linear, affine-invariant. Albedo 4 to 6 and shading 7 to 9, sRGB-coded in [-1,1].
    Inside, patches of `patch` x `patch` pixels are channels, which makes it `patch`^2 times as cheap.

    Raises InputError where it cannot be read.
    """
    folder = Path(name)
    check_sums(folder)
    try:
        said = json.loads((folder / ABOUT).read_text())
        patch, side = int(said["patch"]), int(said["resolution"])
        network = diffusers.UNet2DModel.from_pretrained(folder, torch_dtype=dtype).to(device).eval()
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, ...
        raise InputError(f"--teacher {folder}: cannot be read: {' '.join(str(error).split())[:300]}") from None
    multiple = patch * 2 ** (len(network.config.block_out_channels) - 1)

    @torch.no_grad()
    def predict(picture: Image.Image, noise: list[Generator]) -> np.ndarray:
        rgb = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].to(device, dtype) / 127.5 - 1
        ratio = side / min(picture.size)
        size = [max(multiple, round(edge * ratio / multiple) * multiple) for edge in (picture.height, picture.width)]
        same = size == list(rgb.shape[2:])
        small = rgb if same else F.interpolate(rgb, size, mode="bilinear", antialias=True, align_corners=False)
        maps = predict_maps(network, small, patch).float()
        maps = maps if same else F.interpolate(maps, rgb.shape[2:], mode="bilinear", align_corners=False)
        values = maps[0, CHANNELS[task]].permute(1, 2, 0).cpu().double().numpy()
        if task == "normal":
            return values / np.maximum(np.linalg.norm(values, axis=2, keepdims=True), 1e-6)
        return -values[..., 0] if task == "depth" else np.clip(values / 2 + 0.5, 0, 1)

    if task == "depth":
        return Teacher(predict, "depth", about(name, None, "UNet2DModel"), depth_said("depth", "affine-invariant"))
    words = {"normal": "normals, x right, y down, z forward (opencv)"}.get(task, f"{task}, sRGB-coded")
    return Teacher(predict, task, about(name, None, "UNet2DModel"), {"teacher": words, "labels": words})
