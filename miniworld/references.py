"""Baselines for a trained LoRA's error: maps predicted without a pretrained generator, or without training."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dataloaders.base import Maps
from dataloaders.diode import Diode
from utils.base_model.families import open_base
from utils.base_model.stable_diffusion import load_base, load_donor, widen_conv_in
from utils.inference.output import Output
from utils.inference.prediction import Prediction
from utils.inference.write import write
from utils.intrinsics import Intrinsic
from utils.latents import mode
from utils.lora import add_lora, save_lora
from utils.objectives import decode


def random_control(base: Path, folder: Path, seed: int = 0) -> Path:
    """A copy of the model folder `base` whose network has the same shape and fresh random weights."""
    known = open_base(str(base))
    network, part = known.network, known.prefix
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns(part))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        type(network).from_config(network.config).save_pretrained(folder / part)
    return folder


def untrained_lora(base: Path, donor: Path | None, folder: Path, metadata: dict[str, object]) -> None:
    """A LoRA that changes nothing, as after a run of 0 steps. donor: the source of AugUNet's conv_in."""
    known = load_base(str(base)) if donor else open_base(str(base))
    if donor:
        widen_conv_in(known.network, load_donor(str(donor)))
    add_lora(known.network, rank=1)
    save_lora(known.network, folder, metadata)


def write_mean_label(train_set: Maps, stems: Iterable[str], intrinsic: Intrinsic, folder: Path) -> None:
    """The mean of all training labels, pixel by pixel, as the prediction for every image."""
    total = sum(train_set[index]["target"].double() for index in range(len(train_set)))
    write_maps({stem: (total / len(train_set)).float() for stem in stems}, intrinsic, folder)


def write_vae_ceiling(base: Path, unseen: Diode, intrinsic: Intrinsic, folder: Path) -> None:
    """`through_vae` of every unseen image's label."""
    vae, samples = open_base(str(base)).vae, (unseen[index] for index in range(len(unseen)))
    write_maps({one["stem"]: through_vae(vae, one["target"][None])[0] for one in samples}, intrinsic, folder)


@torch.inference_mode()
def through_vae(vae: AutoencoderKL, labels: Tensor) -> Tensor:
    """Labels (B,3,H,W) in [-1,1] after E and D: the best possible prediction in latents."""
    return decode(vae, vae.config.scaling_factor * mode(vae, labels))


def write_maps(maps: dict[str, Tensor], intrinsic: Intrinsic, folder: Path) -> None:
    """Write maps, stem -> (3,R,R), to the inference scripts' paths and in their formats."""
    target = folder / intrinsic.name / "predicted"
    target.mkdir(parents=True)
    for stem, prediction in maps.items():
        path = target / f"{Path(stem).name}_{intrinsic.name}.png"
        write(Prediction(intrinsic, prediction), path, Output(("png", "npy")))


def evaluation_flags(intrinsic: Intrinsic) -> tuple[str, ...]:
    """evaluate.py's flags for this intrinsic on a rendered tree, besides --task, --pred_dir and --gt_dir."""
    if intrinsic.map_kind.has_axes:
        return ("--protocol", "pooled")
    if intrinsic.map_kind.has_surface:
        return ("--protocol", "diode", "--erode", "0")
    return ("--pred_space", "srgb", "--gt_space", "linear")
