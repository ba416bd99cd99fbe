"""ComfyUI workflows that predict intrinsics with stock nodes only: one UNet pass at one timestep, without noise.

    python -m integrations.comfyui.workflows        # writes workflows/<intrinsic>.json, in the format of ComfyUI's API

An ordinary graph (LoRA -> KSampler) adds noise and scales the latents by sigma: it gives noise, and no error. Here
`img_to_img` hands the latents to the UNet as they are and takes its output as the answer.
"""

import json
import math
from pathlib import Path
from typing import Any

from utils.errors import InputError, run
from utils.intrinsics import INTRINSICS

FOLDER = Path(__file__).with_name("workflows")
CHECKPOINT, LAST = "v1-5-pruned-emaonly.safetensors", 999
Graph = dict[str, dict[str, Any]]


def sigma_of(timestep: int) -> float:
    """sqrt((1 - a) / a), a = prod(1 - beta), of SD's schedule: ComfyUI's name of a timestep, 0 to 999."""
    if not 0 <= timestep <= LAST:
        raise InputError(f"timestep {timestep}: the schedule of Stable Diffusion has 0 to {LAST}")
    first, last = math.sqrt(0.00085), math.sqrt(0.012)
    betas = [(first + (last - first) * i / LAST) ** 2 for i in range(timestep + 1)]
    alpha = math.prod(1 - beta for beta in betas)
    return math.sqrt((1 - alpha) / alpha)


def graph(
    task: str,
    prompt: str,
    timestep: int = LAST,
    *,
    checkpoint: str = CHECKPOINT,
    lora: str | None = None,
    image: str = "photo.png",
    size: int = 512,
) -> Graph:
    """The workflow of one LoRA. size: of the square that the image is cut to, in pixels: the training's."""
    nodes: Graph = {}

    def node(kind: str, **inputs: object) -> str:
        nodes[str(len(nodes) + 1)] = {"class_type": kind, "inputs": inputs}
        return str(len(nodes))

    base = node("CheckpointLoaderSimple", ckpt_name=checkpoint)
    name = lora or f"intrinsic_{task}.safetensors"
    patched = node("LoraLoaderModelOnly", model=[base, 0], lora_name=name, strength_model=1.0)
    single = node("ModelSamplingDiscrete", model=[patched, 0], sampling="img_to_img", zsnr=False)
    text = node("CLIPTextEncode", clip=[base, 1], text=prompt)
    photo = node("LoadImage", image=image)
    sides = {"width": size, "height": size, "crop": "center"}
    square = node("ImageScale", image=[photo, 0], upscale_method="bilinear", **sides)
    latent = node("VAEEncode", pixels=[square, 0], vae=[base, 2])
    noise = node("DisableNoise")
    guider = node("BasicGuider", model=[single, 0], conditioning=[text, 0])
    euler = node("KSamplerSelect", sampler_name="euler")
    sigmas = node("BasicScheduler", model=[single, 0], scheduler="normal", steps=1, denoise=1.0)
    if timestep != LAST:
        sigmas = node("SetFirstSigma", sigmas=[sigmas, 0], sigma=round(sigma_of(timestep), 3))
    predicted = node(
        "SamplerCustomAdvanced",
        noise=[noise, 0],
        guider=[guider, 0],
        sampler=[euler, 0],
        sigmas=[sigmas, 0],
        latent_image=[latent, 0],
    )
    decoded = node("VAEDecode", samples=[predicted, 0], vae=[base, 2])
    node("SaveImage", images=[decoded, 0], filename_prefix=f"intrinsic_{task}")
    return nodes


def text_of(task: str) -> str:
    """The JSON of the shipped workflow of an intrinsic."""
    return json.dumps(graph(task, INTRINSICS[task].prompt), indent=1) + "\n"


def pack_graph(checkpoint: str, lora: str, image: str) -> Graph:
    """The workflow of this project's own nodes, as the check posts it: load, predict, and save the displayed image, a
    16-bit PNG and an EXR, and for normals a relit image.
    """
    base = {"ckpt_name": checkpoint}
    said = {"lora_name": lora, "task": "as the file says", "prompt": "", "timestep": -1}
    axes = {"frame": "opencv (x right, y down, z forward)", "invert": False}
    nodes: Graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": base},
        "2": {"class_type": "LoadIntrinsicLora", "inputs": {"model": ["1", 0], "clip": ["1", 1], **said}},
        "3": {"class_type": "LoadImage", "inputs": {"image": image}},
        "4": {
            "class_type": "PredictIntrinsic",
            "inputs": {"intrinsic": ["2", 0], "vae": ["1", 2], "image": ["3", 0], "resolution": 0},
        },
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "picture"}},
    }
    for number, kind in (("6", "png16"), ("7", "exr")):
        inputs = {"map": ["4", 1], "filename_prefix": f"map_{kind}", "format": kind, **axes}
        nodes[number] = {"class_type": "SaveIntrinsicMap", "inputs": inputs}
    if "depth" not in lora:
        lamp = {"azimuth": 60.0, "elevation": 30.0, "ambient": 0.2}
        nodes["8"] = {"class_type": "RelightIntrinsic", "inputs": {"map": ["4", 1], "image": ["3", 0], **lamp}}
        nodes["9"] = {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "relit"}}
    return nodes


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for task in INTRINSICS:
        (FOLDER / f"{task}.json").write_text(text_of(task))


if __name__ == "__main__":
    run(main)
