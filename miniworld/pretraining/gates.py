"""Requirements of the small generator, measured on scenes that its training has not seen."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw
from torch import Tensor

from miniworld.pretraining.generator import GUIDANCE, Parts, decode, encode, sample, tokenize
from miniworld.pretraining.vae import reconstruct, to_tensor
from miniworld.pretraining.wasserstein import sliced_wasserstein
from miniworld.render.diode_tree import TASKS, encode_labels
from miniworld.scenes import KINDS, render
from utils.kinds.normals import angular_error

UNSEEN = 1_000_000  # added to the training's seed, so that no training scene is rendered again
PSNR_FLOOR, NORMAL_CEILING, SPREAD = 27.0, 6.0, (0.7, 1.3)


@dataclass
class Gate:
    """A measured number and its requirement. `passed` is None without a requirement."""

    name: str
    value: str
    asked: str = ""
    passed: bool | None = None

    def row(self) -> str:
        met = {None: "", True: "yes", False: "**no**"}[self.passed]
        return f"| {self.name} | {self.value} | {self.asked} | {met} |"


def gates_table(gates: list[Gate]) -> str:
    """The gates as a Markdown table."""
    return "\n".join(
        ["| measured on unseen scenes | value | asked | met |", "|---|---|---|---|", *(g.row() for g in gates)]
    )


def unseen_scenes(seed: int, count: int, size: int = 64) -> tuple[dict[str, Tensor], np.ndarray, list[str]]:
    """Maps by name (rgb, normal, depth, albedo, shading), each (count,3,size,size) in [-1,1], rooms and yards in turn;
    whether there is a surface, (count,size,size); and captions.
    """
    seeds = (np.random.SeedSequence([seed + UNSEEN, index]) for index in range(count))
    kinds = list(KINDS)
    scenes = [render(one, kinds[index % 2], size, size) for index, one in enumerate(seeds)]
    labels = [{"rgb": scene.rgb, **encode_labels(scene)} for scene in scenes]
    maps = {name: to_tensor(np.stack([label[name] for label in labels])) * 2 - 1 for name in ("rgb", *TASKS)}
    return maps, np.stack([scene.depth > 0 for scene in scenes]), [scene.caption for scene in scenes]


def vae_gates(vae: AutoencoderKL, maps: dict[str, Tensor], seen: np.ndarray) -> list[Gate]:
    """Reconstruction of images and normals, and whether the latents of every map are about as large as an image's."""
    drawn = batched(lambda x: reconstruct(vae, x).clamp(-1, 1), maps["rgb"])
    errors = (drawn - maps["rgb"]).pow(2).mean(dim=(1, 2, 3))
    psnr = (10 * torch.log10(4 / errors)).mean().item()
    normal = batched(lambda x: reconstruct(vae, x), maps["normal"])
    angle = angular_error(channels_last(normal)[seen], channels_last(maps["normal"])[seen]).mean()
    spread = {name: batched(lambda x: encode(vae, x)[0], x).std().item() for name, x in maps.items()}
    low, high = SPREAD
    gates = [
        Gate("RGB through the VAE, mean PSNR", f"{psnr:.2f} dB", f"at least {PSNR_FLOOR:g}", psnr >= PSNR_FLOOR),
        Gate(
            "normal maps through the VAE, mean error",
            f"{angle:.2f} degrees",
            f"at most {NORMAL_CEILING:g}",
            bool(angle <= NORMAL_CEILING),
        ),
        Gate("standard deviation of RGB latents, scaled", f"{spread['rgb'] * vae.config.scaling_factor:.3f}"),
    ]
    for task in TASKS:
        ratio = spread[task] / spread["rgb"]
        gates.append(
            Gate(f"latents of {task} maps / of RGB, std", f"{ratio:.2f}", f"{low:g} to {high:g}", low <= ratio <= high)
        )
    return gates


def batched(function, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([function(part) for part in x.split(64)])


def channels_last(x: Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


def draw(parts: Parts, vae: AutoencoderKL, captions: list[str], seed: int, guidance: float, steps: int = 25) -> Tensor:
    """An image (3,64,64) in [-1,1] for each caption."""
    tokens, empty = tokenize(parts.tokenizer, captions), tokenize(parts.tokenizer, [""])[0]
    z = sample(parts.unet, parts.text_encoder, parts.scheduler, tokens, empty, seed, steps, guidance)
    return decode(vae, z / vae.config.scaling_factor)


def distance(parts: Parts, vae: AutoencoderKL, rgb: Tensor, captions: list[str], seed: int) -> list[float]:
    """Sliced Wasserstein distance, fine to coarse, between scenes rgb (N,3,S,S) and samples for other captions."""
    return sliced_wasserstein(draw(parts, vae, captions, seed, guidance=1, steps=10), rgb)


def contact_sheet(images: Tensor, captions: list[str], path: Path, columns: int = 6, zoom: int = 3) -> None:
    """Images (N,3,S,S) in [-1,1], each above its caption."""
    side, line, lines = images.shape[-1] * zoom, 12, 4
    width, height = side + 8, side + line * lines + 8
    page = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    pen = ImageDraw.Draw(page)
    for index, (image, caption) in enumerate(zip(images, captions)):
        x, y = index % columns * width + 4, index // columns * height + 4
        pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        page.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (x, y))
        for number, text in enumerate(textwrap.wrap(caption, 32)[:lines]):
            pen.text((x, y + side + line * number), text, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def sheet_of_samples(parts: Parts, vae: AutoencoderKL, captions: list[str], path: Path, seed: int = 0) -> None:
    """Guided samples for captions of unseen scenes."""
    contact_sheet(draw(parts, vae, captions, seed, GUIDANCE), captions, path)
