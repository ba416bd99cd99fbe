"""StyleGAN2's weights: a folder of this project, or rosinality's public .pt files.

<folder>/config.json            {"_class_name": "StyleGAN2", "channels": {"4": 192, ...}, "style_dim": 128, "depth": 4}
<folder>/generator.safetensors  the state dict, in any precision
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.errors import InputError
from utils.generators.gan_names import check_gan
from utils.generators.stylegan2 import BLUR, EqualLinear, StyleGAN2, blur_kernel

CONFIG, WEIGHTS, KIND = "config.json", "generator.safetensors", "StyleGAN2"
AVERAGES = "g_ema"  # the moving averages, which pictures are made with


@dataclass
class Gan:
    """A generator, frozen, in eval mode and fp32; its affine layers folded, ready for a LoRA."""

    name: str
    network: StyleGAN2
    revision: str | None = None


def load_gan(name: str) -> Gan:
    """Load a generator from a folder or a .pt file.

    Raises InputError where there is none, it is of another kind, or its weights do not fit together.
    """
    check_gan(name)
    path = Path(name)
    network, state = _folder(path) if path.is_dir() else _rosinality(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: no StyleGAN2 of this shape: {' '.join(str(error).split())[:300]}") from None
    for module in network.modules():
        if isinstance(module, EqualLinear):
            module.fold()
    return Gan(str(path.resolve()), network.requires_grad_(False).eval())


def save_gan(folder: Path, network: StyleGAN2) -> None:
    """Write weights, not folded, in fp16, and the configuration into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": KIND, "channels": network.channels, "style_dim": network.style_dim}
    (folder / CONFIG).write_text(json.dumps(config | {"depth": len(network.style) - 1}, indent=2) + "\n")
    save_file({key: value.half().contiguous() for key, value in network.state_dict().items()}, folder / WEIGHTS)


def _folder(path: Path) -> tuple[StyleGAN2, dict[str, Tensor]]:
    try:
        config = json.loads((path / CONFIG).read_text())
        if config.get("_class_name") != KIND:
            raise InputError(f"{path}: holds a {config.get('_class_name')}, not a {KIND}")
        channels = {int(side): count for side, count in config["channels"].items()}
        network = StyleGAN2(channels, config["style_dim"], config["depth"])
        return network, {key: value.float() for key, value in load_file(path / WEIGHTS).items()}
    except InputError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, ...
        raise InputError(f"{path}: cannot be read as a {KIND}: {' '.join(str(error).split())[:300]}") from None


def _rosinality(path: Path) -> tuple[StyleGAN2, dict[str, Tensor]]:
    """A generator of the shape that the file's weights have, and the weights."""
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: not a file of tensors alone ({' '.join(str(error).split())[:200]})") from None
    state = found.get(AVERAGES) if isinstance(found, dict) else None
    if not isinstance(state, dict):
        raise InputError(f"{path}: no {AVERAGES} in it, the generator's moving averages in rosinality's format")
    kernels = {key: value for key, value in state.items() if key.endswith(".kernel")}
    weights = {key: value for key, value in state.items() if key not in kernels}
    for key, kernel in kernels.items():
        if not torch.allclose(kernel, blur_kernel(1, kernel, gain=kernel.sum().item())[0, 0]):
            raise InputError(f"{path}: {key} is another low pass than {[int(tap) for tap in BLUR]}")
    try:
        channels = {4: weights["input.input"].shape[1]}
        for i in range(1, 20, 2):
            if (key := f"convs.{i}.conv.weight") in weights:
                channels[4 * 2 ** ((i + 1) // 2)] = weights[key].shape[1]
        style_dim = weights["conv1.conv.modulation.weight"].shape[1]
        depth = sum(key.startswith("style.") and key.endswith(".weight") for key in weights)
    except (KeyError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: no StyleGAN2 generator in {AVERAGES} (it lacks {error})") from None
    return StyleGAN2(channels, style_dim, depth), weights
