"""Load intrinsic LoRA, Predict intrinsic, Save map, Relight."""

import copy
from pathlib import Path

import comfy.samplers
import folder_paths
import numpy as np
import torch
from comfy_extras.nodes_custom_sampler import Guider_Basic
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from PIL import Image

from .lora import PROMPTS, facts, patched
from .maps import CODINGS, FRAMES, encode, light

CATEGORY, FROM_FILE = "intrinsic", "as the file says"


class LoadIntrinsicLora:
    """The LoRA in the model, with its prompt encoded and its timestep set from its header."""

    RETURN_TYPES, RETURN_NAMES, FUNCTION, CATEGORY = ("INTRINSIC",), ("intrinsic",), "load", CATEGORY

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "lora_name": (folder_paths.get_filename_list("loras"),),
                "task": ([FROM_FILE, *PROMPTS],),
                "prompt": ("STRING", {"default": "", "tooltip": "empty: as the file says"}),
                "timestep": ("INT", {"default": -1, "min": -1, "max": 999, "tooltip": "-1: as the file says"}),
            }
        }

    def load(self, model, clip, lora_name, task, prompt, timestep):
        path = Path(folder_paths.get_full_path_or_raise("loras", lora_name))
        said = facts(path, None if task == FROM_FILE else task)
        model = ModelSamplingDiscrete().patch(patched(model, path), "img_to_img", False)[0]
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt or said.prompt))
        sigmas = model.get_model_object("model_sampling").sigmas
        last = len(sigmas) - 1
        t = timestep if timestep >= 0 else last if said.timestep is None else said.timestep
        sigmas = torch.tensor([float(sigmas[t]), 0.0])
        return ({"model": model, "conditioning": conditioning, "sigmas": sigmas, "facts": said},)


class PredictIntrinsic:
    """One UNet pass for each image: the whole image, its map at the image's own size, and the map's latents."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE", "INTRINSIC_MAP", "LATENT"), "predict", CATEGORY
    RETURN_NAMES = ("image", "map", "latent")

    @classmethod
    def INPUT_TYPES(cls):
        side = {"default": 0, "min": 0, "max": 8192, "step": 8, "tooltip": "short side in pixels; 0: the training's"}
        return {
            "required": {
                "intrinsic": ("INTRINSIC",),
                "vae": ("VAE",),
                "image": ("IMAGE",),
                "resolution": ("INT", side),
            }
        }

    def predict(self, intrinsic, vae, image, resolution):
        said = intrinsic["facts"]
        pixels, inner = prepare(image, resolution or said.resolution)
        latent = vae.encode(pixels)
        guider = Guider_Basic(intrinsic["model"])
        guider.set_conds(intrinsic["conditioning"])
        euler = comfy.samplers.sampler_object("euler")
        answer = guider.sample(torch.zeros_like(latent), latent, euler, intrinsic["sigmas"], seed=0).cpu()
        unclamped = copy.copy(vae)
        unclamped.process_output = lambda decoded: decoded  # ComfyUI's clamps to [0,1], which bends depth
        raw = unclamped.decode(answer)[:, : inner[0], : inner[1]].float().cpu()
        if not torch.isfinite(raw).all():
            raise ValueError("the decoded map holds NaN or infinity, which half precision gives where a value is too "
                "large for it; start ComfyUI with --fp32-vae, or --fp32-unet too")  # fmt: skip
        planes = linear(raw.movedim(-1, 1).contiguous(), said.depth_coding)
        if inner != tuple(image.shape[1:3]):
            planes = resized(unit(planes) if said.task == "normal" else planes, image.shape[1:3])
            planes = unit(planes) if said.task == "normal" else planes
        map = {"task": said.task, "values": values_of(planes, said.task), "facts": said.records}
        return (picture(planes, said.task), map, {"samples": answer})


class SaveMap:
    """Write maps with more than 8 bits: PNG of 16 bits a channel, or float OpenEXR."""

    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "save", True, CATEGORY

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "map": ("INTRINSIC_MAP",),
                "filename_prefix": ("STRING", {"default": "intrinsic"}),
                "format": (["png16", "exr"],),
                "frame": (list(FRAMES), {"tooltip": "axes of normals"}),
                "invert": ("BOOLEAN", {"default": False, "tooltip": "depth: far = white"}),
            }
        }

    def save(self, map, filename_prefix, format, frame, invert):
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        saved = []
        files = encode(map["values"], map["task"], format, frame, invert, map.get("facts", {}))
        for i, content in enumerate(files):
            file = f"{name}_{counter + i:05}_.{format.removesuffix('16')}"
            Path(folder, file).write_bytes(content)
            saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
        return {"ui": {"images": saved if format == "png16" else [], "files": saved}}


class Relight:
    """The image under a distant light from elsewhere: image times Lambert's shading of predicted normals."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "relight", CATEGORY

    @classmethod
    def INPUT_TYPES(cls):
        angle = {"default": 45.0, "min": -180.0, "max": 180.0}
        return {
            "required": {
                "map": ("INTRINSIC_MAP",),
                "image": ("IMAGE", {"tooltip": "the photograph, or better its albedo"}),
                "azimuth": ("FLOAT", {**angle, "tooltip": "degrees; 0: from the viewer, 90: from the right"}),
                "elevation": ("FLOAT", {**angle, "tooltip": "degrees upwards"}),
                "ambient": ("FLOAT", {"default": 0.2, "min": 0.0, "max": 1.0, "step": 0.05}),
            }
        }

    def relight(self, map, image, azimuth, elevation, ambient):
        if map["task"] != "normal":
            raise ValueError(f"Relight wants a map of normals, not of {map['task']}")
        shading = torch.from_numpy(light(map["values"], azimuth, elevation, ambient).astype(np.float32))
        if tuple(shading.shape[1:3]) != tuple(image.shape[1:3]):
            raise ValueError(f"image of {tuple(image.shape[1:3])} pixels, normals of {tuple(shading.shape[1:3])}")
        return ((image * shading[..., None]).clamp(0, 1),)


def prepare(image: torch.Tensor, side: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """(B,H,W,3) in [0,1] -> short side `side`, padded to multiples of 64; and its size before the padding."""
    height, width = image.shape[1:3]
    short = min(height, width)
    inner = (int(side * height / short), int(side * width / short))
    sized = [
        np.asarray(Image.fromarray(one).resize(inner[::-1], Image.Resampling.BILINEAR))
        for one in (image[..., :3].cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
    ]
    below, right = -inner[0] % 64, -inner[1] % 64
    padded = np.pad(np.stack(sized), ((0, 0), (0, below), (0, right), (0, 0)), mode="reflect")
    return torch.from_numpy(padded).float() / 255, inner


def linear(planes: torch.Tensor, coding: str) -> torch.Tensor:
    """(B,3,H,W) about [-1,1] of a LoRA whose depth has this coding -> the same linear in depth, near = 1."""
    if coding == "linear":
        return planes
    far = (1 - planes.mean(-3, keepdim=True)) / 2
    return (1 - 2 * CODINGS[coding](far)).expand(planes.shape)


def resized(planes: torch.Tensor, size) -> torch.Tensor:
    return torch.nn.functional.interpolate(planes, tuple(size), mode="bilinear", antialias=True)


def unit(planes: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(planes, dim=1, eps=1e-12)


def values_of(planes: torch.Tensor, task: str) -> np.ndarray:
    """(B,3,H,W) about [-1,1] -> unit normals (B,H,W,3); depth (B,H,W,1), near = large; colours about [0,1]."""
    if task == "depth":
        return planes.mean(1)[..., None].numpy()
    return (unit(planes) if task == "normal" else planes / 2 + 0.5).movedim(1, -1).numpy()


def picture(planes: torch.Tensor, task: str) -> torch.Tensor:
    """The image to show, (B,H,W,3): colours for [-1,1]; depth from the smallest value to the largest of the batch,
    whose images may be the frames of a film.
    """
    if task != "depth":
        return (planes / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    planes = planes if len(planes) == 1 else planes.mean(1, keepdim=True)
    low, high = planes.min(), planes.max()
    shares = ((planes - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).mean(1)
    return shares[..., None].expand(-1, -1, -1, 3)


NODES = {
    "LoadIntrinsicLora": (LoadIntrinsicLora, "Load intrinsic LoRA"),
    "PredictIntrinsic": (PredictIntrinsic, "Predict intrinsic"),
    "SaveIntrinsicMap": (SaveMap, "Save map"),
    "RelightIntrinsic": (Relight, "Relight"),
}
