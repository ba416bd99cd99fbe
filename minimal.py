"""The paper's single step in one file: train a LoRA, predict a map (Intrinsic LoRA, arXiv 2311.17137).

    python minimal.py train --base miniworld/mini-sd --images DIODE/depths/train --labels DIODE/pseudo/normal/train \\
        --prompt "surface normal" --out runs/minimal --size 64 --timestep 400 --lr 4e-3 --steps 300
    python minimal.py predict --base miniworld/mini-sd --prompt "surface normal" --lora runs/minimal --size 64 \\
        --timestep 400 --images examples/coffee.jpg --out normal.png

A Stable Diffusion that paints an image from noise already knows where the image's surfaces are. To get the normals
out, freeze it, put a small LoRA on its attention layers, hand it the latents of the *image* where it expects noise,
and train it to answer with the latents of the *normal map*:

    loss = mse(unet(s E(rgb), t, c), s E(label))          map = D(unet(s E(rgb), t, c) / s)

E, D: the VAE's encoder and decoder; s: its scaling factor; c: the CLIP states of one fixed prompt; t: one fixed
timestep, the last one (999) in the paper. Depth, albedo and shading differ in labels and prompt only.

This file imports nothing from the repository and can be copied anywhere. The scripts next to it compute the same loss
(tests/test_minimal.py) and add what a real experiment needs: resuming, validation, DIODE, masks, several processes.
"""

import argparse
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: on a busy CPU, spinning is slow

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image


def load_base(name: str, prompt: str) -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    """The frozen UNet and VAE of a Stable Diffusion, and c (1,77,D), the text encoder's states of the prompt."""
    pipeline = StableDiffusionPipeline.from_pretrained(name, safety_checker=None, requires_safety_checker=False)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    with torch.no_grad():
        c, _ = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    return pipeline.unet, pipeline.vae, c


def add_lora(unet: torch.nn.Module, rank: int, seed: int) -> list[torch.nn.Parameter]:
    """W x becomes W x + up(down(x)) on every attention layer; up starts at 0, so the UNet's output is unchanged."""
    torch.manual_seed(seed)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def read(path: Path, size: int) -> torch.Tensor:
    """An 8-bit RGB image -> (3,size,size) in [-1,1]: short side resized to `size`, centre square."""
    image = Image.open(path).convert("RGB")
    width, height = (size * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.array(image.crop((left, top, left + size, top + size)), dtype=np.float32)
    return torch.from_numpy(pixels / 255 * 2 - 1).permute(2, 0, 1)


def predict_latents(unet, vae, c: torch.Tensor, rgb: torch.Tensor, t: int) -> torch.Tensor:
    """rgb (B,3,H,W) in [-1,1] -> the map's scaled latents (B,4,h,w), in a single pass."""
    with torch.no_grad():
        z = vae.config.scaling_factor * vae.encode(rgb).latent_dist.mode()
    # The clean image's latents take the place of noise, and there is no noise anywhere: the timestep is a mere label.
    return unet(z, torch.full((len(z),), t), c.expand(len(z), -1, -1)).sample


def loss_of(unet, vae, c: torch.Tensor, rgb: torch.Tensor, label: torch.Tensor, t: int, randn) -> torch.Tensor:
    """Mean squared error in latent space, a scalar. rgb, label (B,3,H,W) in [-1,1]; randn(shape): standard normal."""
    with torch.no_grad():
        posterior = vae.encode(label).latent_dist  # sampled, as in the paper's code; the input is the mode
        target = vae.config.scaling_factor * (posterior.mean + posterior.std * randn(posterior.mean.shape))
    return torch.nn.functional.mse_loss(predict_latents(unet, vae, c, rgb, t), target)


def train(args: argparse.Namespace) -> None:
    images = sorted(path for path in Path(args.images).rglob("*.png"))
    labels = [Path(args.labels) / path.relative_to(args.images) for path in images]  # the same names in another folder
    unet, vae, c = load_base(args.base, args.prompt)
    parameters = add_lora(unet, args.rank, args.seed)
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-2)  # the paper: 1e-4, batch 4, rank 8
    generator = torch.Generator().manual_seed(args.seed)
    for step in range(args.steps):
        chosen = torch.randint(len(images), (args.batch,), generator=generator)
        rgb, label = (torch.stack([read(files[i], args.size) for i in chosen]) for files in (images, labels))
        loss = loss_of(unet, vae, c, rgb, label, args.timestep, partial(torch.randn, generator=generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1} of {args.steps}: loss {loss.item():.4f}", end="\r" if step + 1 < args.steps else "\n")
    # diffusers' own file: pipeline.load_lora_weights and every script of the repository read it
    StableDiffusionPipeline.save_lora_weights(args.out, unet_lora_layers=get_peft_model_state_dict(unet))
    print(f"{args.out}: written; next: python minimal.py predict --lora {args.out} --images IMAGE --out MAP.png ...")


def predict(args: argparse.Namespace) -> None:
    unet, vae, c = load_base(args.base, args.prompt)
    unet.load_lora_adapter(args.lora, prefix="unet", weight_name="pytorch_lora_weights.safetensors")
    with torch.no_grad():
        z = predict_latents(unet, vae, c, read(Path(args.images), args.size)[None], args.timestep)
        pixels = vae.decode(z / vae.config.scaling_factor).sample[0]  # (3,H,W) about [-1,1]
    Image.fromarray((255 * (pixels.clamp(-1, 1) / 2 + 0.5)).byte().permute(1, 2, 0).numpy()).save(args.out)
    print(f"{args.out}: written")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function in (train, predict):
        command = commands.add_parser(function.__name__)
        command.set_defaults(run=function)
        command.add_argument("--base", default="stable-diffusion-v1-5/stable-diffusion-v1-5")
        command.add_argument("--prompt", default="surface normal")
        command.add_argument("--images", required=True, help="train: a folder of .png; predict: one image")
        command.add_argument("--out", required=True, help="train: a folder for the LoRA; predict: the map's .png")
        command.add_argument("--size", type=int, default=512, help="side of the square that the network sees, pixels")
        command.add_argument("--timestep", type=int, default=999)
    commands.choices["train"].add_argument("--labels", required=True, help="maps of the same names, 8-bit .png")
    for name, default in {"steps": 20_000, "batch": 4, "rank": 8, "seed": 1234}.items():
        commands.choices["train"].add_argument(f"--{name}", type=int, default=default)
    commands.choices["train"].add_argument("--lr", type=float, default=1e-4)
    commands.choices["predict"].add_argument("--lora", required=True, help="the folder that train wrote")
    args = parser.parse_args()
    args.run(args)
