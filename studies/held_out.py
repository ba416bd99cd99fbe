"""Errors on unseen images, of LoRAs on a GAN or on an autoregressive generator and of their references."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dataloaders.diode import Diode
from generators.pixel_prediction import Generated
from generators.stylegan2 import CONFIG, WEIGHTS, StyleGAN2, load_gan, save_gan
from generators.token_prediction import TokenPrediction
from generators.transformer import Autoregressive
from miniworld.references import through_vae
from utils.intrinsics import INTRINSICS, Intrinsic
from utils.kinds.alignment import linear_map
from utils.kinds.base import score_of
from utils.labels.teachers import load_teacher
from utils.lora import load_attn_procs

HELD_OUT = 10_000  # seed of the generated images that no training sees
BATCH = 20
RIDGE = 1e-2


def errors(predictions: Tensor, items: Sequence[dict], intrinsic: Intrinsic, protocol: str = "plain") -> np.ndarray:
    """The intrinsic's first metric of each image (N,); predictions (N,3,S,S). NaN where it cannot be scored."""
    score, metric = score_of(intrinsic, protocol), next(iter(intrinsic.scores))
    values = linear_map(predictions, intrinsic.depth_coding)
    found = [score(one, item["gt"], item["valid"]) for one, item in zip(values, items, strict=True)]
    return np.array([np.nan if one is None else one[metric] for one in found])


def generated(base: Path, teacher: Path, task: str, count: int, seed: int, reader: Path | None = None) -> list[dict]:
    """Images of the GAN `base` with the teacher's labels and `reader`'s w, as gan_pseudo.py makes them."""
    asked = load_teacher(task, str(teacher), None, torch.device("cpu"), torch.float32)
    painter, read = load_gan(str(base)).network, load_gan(str(reader or base)).network
    made = Generated(INTRINSICS[task], painter, asked, count, seed, read)
    return [made[index] for index in range(count)]


@torch.no_grad()
def gan_errors(base: Path, lora: Path, items: Sequence[dict], task: str) -> np.ndarray:
    """Of G'(w)."""
    network = load_gan(str(base)).network
    load_attn_procs(network, lora)
    w = torch.stack([item["w"] for item in items])
    return errors(torch.cat([network(part) for part in w.split(BATCH)]), items, INTRINSICS[task])


def scenes(diode: Path, task: str, split: str, resolution: int) -> list[dict]:
    """Rendered images with labels and truth."""
    intrinsic = INTRINSICS[task]
    found = Diode(intrinsic, diode / intrinsic.truth_folder, diode / "pseudo" / task, split, resolution=resolution)
    return [found[index] for index in range(len(found))]


@torch.no_grad()
def ar_errors(base: Autoregressive, lora: Path, items: Sequence[dict], task: str) -> np.ndarray:
    """Errors of the maps by the likeliest tokens. `base` has no LoRA yet."""
    header = load_attn_procs(base.network, lora)
    objective = TokenPrediction.of(base.tokens, header)
    rgb = torch.stack([item["rgb"] for item in items])
    found = [objective.predict(base.network, part, []) for part in rgb.split(BATCH)]
    return errors(torch.cat(found), items, INTRINSICS[task], "diode")


def mean_label(train: Sequence[dict], items: Sequence[dict], task: str, protocol: str = "plain") -> np.ndarray:
    """Errors of the mean of the training labels, pixel by pixel, used as the prediction for every image."""
    mean = torch.stack([item["target"] for item in train]).mean(0)
    return errors(mean.expand(len(items), -1, -1, -1), items, INTRINSICS[task], protocol)


def linear_readout(train: Sequence[dict], items: Sequence[dict], task: str) -> np.ndarray:
    """Of a ridge regression from w to the label's pixels: what w says without the generator."""
    points, targets = (torch.stack([item[name] for item in train]).double() for name in ("w", "target"))
    centre, mean = points.mean(0), targets.mean(0)
    x, y = points - centre, (targets - mean).flatten(1)
    weights = torch.linalg.solve(x.T @ x + RIDGE * len(x) * x.var() * torch.eye(x.shape[1]), x.T @ y)
    asked = torch.stack([item["w"] for item in items]).double() - centre
    predictions = (asked @ weights).view(len(items), *mean.shape) + mean
    return errors(predictions.float(), items, INTRINSICS[task])


def through_tokens(base: Autoregressive, items: Sequence[dict], task: str) -> np.ndarray:
    """Of the label itself, made into tokens and back: the best that any prediction in tokens can be."""
    targets = torch.stack([item["target"] for item in items])
    found = [base.tokens.decode(base.tokens.encode(part)) for part in targets.split(BATCH)]
    return errors(torch.cat(found), items, INTRINSICS[task], "diode")


def vae_ceiling(vae: AutoencoderKL, items: Sequence[dict], task: str) -> np.ndarray:
    """Of the label itself, encoded and decoded."""
    targets = torch.stack([item["target"] for item in items])
    found = [through_vae(vae, part) for part in targets.split(BATCH)]
    return errors(torch.cat(found), items, INTRINSICS[task], "diode")


def random_generator(folder: Path, out: Path, seed: int = 0) -> Path:
    """The generator of `folder` with fresh random weights; an autoregressive one keeps its VQ model."""
    if out.exists():
        return out
    torch.manual_seed(seed)
    if (folder / CONFIG).is_file():
        trained = load_gan(str(folder)).network
        save_gan(out, StyleGAN2(trained.channels, trained.style_dim, len(trained.style) - 1))
        quiet(out, folder)
        return out
    return with_transformer(folder, LlamaForCausalLM(LlamaConfig.from_pretrained(folder / "transformer")), out)


def with_transformer(folder: Path, transformer: LlamaForCausalLM, out: Path) -> Path:
    """A copy `out` of the autoregressive generator in `folder` with another transformer."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("transformer", "README.md"))
    transformer.save_pretrained(out / "transformer")
    return out


def quiet(random: Path, trained: Path) -> None:
    """Give the random GAN the trained one's noise images, so that only the weights differ."""
    own, other = load_file(random / WEIGHTS), load_file(trained / WEIGHTS)
    save_file(
        {key: other[key] if key.startswith("noises.") else value for key, value in own.items()}, random / WEIGHTS
    )
