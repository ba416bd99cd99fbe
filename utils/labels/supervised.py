"""A supervised network for all four intrinsics, in one folder: diffusers' UNet2DModel, and what its channels mean.

<folder>/config.json, diffusion_pytorch_model.safetensors     the network, timestep always 0
<folder>/intrinsics.json                                      {"patch": 2, "resolution": 64}

A picture (3,H,W) in [-1,1] goes in, and its maps (10,H,W) come out: normal 0 to 2, x right, y down, z forward; depth
3, near = 1, far = -1, linear, affine-invariant; albedo 4 to 6 and shading 7 to 9, sRGB-coded in [-1,1]. Inside,
patches of `patch` x `patch` pixels are channels, which makes it `patch`^2 times as cheap.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from utils.errors import InputError
from utils.labels.teacher import Teacher, about, depth_said

ABOUT = "intrinsics.json"
CHANNELS = {"normal": slice(0, 3), "depth": slice(3, 4), "albedo": slice(4, 7), "shading": slice(7, 10)}
MAPS = 10


def predict_maps(network: UNet2DModel, rgb: Tensor, patch: int) -> Tensor:
    """Pictures (B,3,H,W) in [-1,1] -> maps (B,10,H,W), not clamped, normals not of unit length."""
    inside = network(F.pixel_unshuffle(rgb, patch), torch.zeros(len(rgb), device=rgb.device)).sample
    return F.pixel_shuffle(inside, patch)


def load_supervised(name: str, task: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """The teacher in the folder `name`. Raises InputError where it cannot be read."""
    folder = Path(name)
    try:
        said = json.loads((folder / ABOUT).read_text())
        patch, side = int(said["patch"]), int(said["resolution"])
        network = UNet2DModel.from_pretrained(folder, torch_dtype=dtype).to(device).eval()
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
