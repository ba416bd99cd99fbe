"""StyleGAN2's generator (Karras et al. 2020, arXiv 1912.04958; skip connections of figure 7b) in plain PyTorch.

    w = mapping(z);  a style A_l(w) scales the input channels of every convolution, whose outputs are then brought back
    to unit deviation (equation 3);  the image is the sum of the RGB outputs of all resolutions, upsampled.

A_l, an affine layer of w, is called `modulation` here. Modules are named as in rosinality's state dicts, the usual
format of public weights outside NVIDIA's own code. Weights are read from a folder of this project or from rosinality's
public .pt files. With random weights the images equal that project's to 1e-6 of their deviation.

    <folder>/config.json            {"_class_name": "StyleGAN2", "channels": {"4": 192, ...}, "style_dim": 128, ...}
    <folder>/generator.safetensors  the state dict, in any precision
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from generators.args import check_gan
from utils.errors import InputError
from utils.system.atomic import check_sums

BLUR = (1.0, 3.0, 3.0, 1.0)
GAIN = math.sqrt(2)  # restores the signal power that leaky ReLU removes
MAPPING_RATE = 0.01  # learning rate of the mapping's layers, relative to the rest
EPSILON = 1e-8
CONFIG, WEIGHTS, KIND = "config.json", "generator.safetensors", "StyleGAN2"
AVERAGES = "g_ema"  # rosinality's key of the moving averages, the weights to generate with


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, times GAIN."""
    return F.leaky_relu(x, 0.2) * GAIN


def blur_kernel(channels: int, like: Tensor, gain: float = 1.0) -> Tensor:
    """A depthwise low pass (channels,1,4,4) whose taps sum to `gain`."""
    line = like.new_tensor(BLUR)
    kernel = torch.outer(line, line)
    return (kernel * (gain / kernel.sum())).expand(channels, 1, 4, 4)


class EqualLinear(nn.Linear):
    """A linear layer at equalised learning rate: weights of unit deviation, scaled when used (1710.10196, 4.1).

    `fold` writes the scale into the weights, so that the layer computes the same as a plain `nn.Linear`.
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0):
        super().__init__(inputs, outputs)
        nn.init.normal_(self.weight, std=1 / rate)
        nn.init.constant_(self.bias, bias)
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)

    @torch.no_grad()
    def fold(self) -> None:
        """W <- W scale, b <- b rate, in place."""
        self.weight *= self.scale
        self.bias *= self.rate
        self.scale = self.rate = 1.0


class PixelNorm(nn.Module):
    """x / sqrt(mean(x^2)) over the second axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPSILON)


class ModulatedConv(nn.Module):
    """A convolution (B,C,H,W) -> (B,O,H,W), with `up` (B,O,2H,2W), whose input channels are scaled by w (B,D)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, style_dim: int, up: bool = False, norm: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(style_dim, inputs, bias=1.0)
        self.up, self.norm = up, norm

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        weight = self.weight[0] / math.sqrt(self.weight[0, 0].numel())
        style = self.modulation(w)  # (B,C)
        x = x * style[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = F.conv2d(x, blur_kernel(x.shape[1], x, gain=4.0), padding=1, groups=x.shape[1])
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if self.norm:  # equation 3, applied to outputs instead of weights: one convolution for the batch
            power = style.square() @ weight.square().sum((2, 3)).T
            x = x * torch.rsqrt(power + EPSILON)[:, :, None, None]
        return x


class Noise(nn.Module):
    """x + strength * noise: one noise image (1 or B,1,H,W) for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + self.weight * noise


class Bias(nn.Module):
    """leaky(x + b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return leaky(x + self.bias[None, :, None, None])


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool = False):
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style_dim, up)
        self.noise, self.activate = Noise(), Bias(outputs)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        return self.activate(self.noise(self.conv(x, w), noise))


class ToRGB(nn.Module):
    """Features -> RGB (B,3,H,W), added to the upsampled image of the resolution below."""

    def __init__(self, inputs: int, style_dim: int):
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, style_dim, norm=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, w: Tensor, skip: Tensor | None = None) -> Tensor:
        rgb = self.conv(x, w) + self.bias
        if skip is None:
            return rgb
        return rgb + F.conv_transpose2d(skip, blur_kernel(3, skip, gain=4.0), stride=2, padding=1, groups=3)


class Constant(nn.Module):
    """The learned 4x4 start of every image."""

    def __init__(self, channels: int):
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class StyleGAN2(nn.Module):
    """z (B,D) -> w (B,D) by `mapping`; w -> image (B,3,S,S) in about [-1,1] by `forward`.

    channels: resolution -> features, for resolutions from 4 to S, each twice the previous one. depth: layers of the
    mapping.
    """

    def __init__(self, channels: Mapping[int, int], style_dim: int = 512, depth: int = 8):
        super().__init__()
        sides = sorted(channels)
        self.channels, self.style_dim, self.size = dict(channels), style_dim, sides[-1]
        mapping = [EqualLinear(style_dim, style_dim, rate=MAPPING_RATE) for _ in range(depth)]
        self.style = nn.ModuleList([PixelNorm(), *mapping])
        self.input = Constant(channels[4])
        self.conv1 = StyledConv(channels[4], channels[4], style_dim)
        self.to_rgb1 = ToRGB(channels[4], style_dim)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        self.noises = nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        for below, side in pairwise(sides):
            for inputs, up in ((channels[below], True), (channels[side], False)):
                self.noises.register_buffer(f"noise_{len(self.convs) + 1}", torch.randn(1, 1, side, side))
                self.convs.append(StyledConv(inputs, channels[side], style_dim, up))
            self.to_rgbs.append(ToRGB(channels[side], style_dim))

    @property
    def styles(self) -> int:
        """Number of layers that take a style. Each may get its own w: (B,styles,D)."""
        return len(self.convs) + 2

    def mapping(self, z: Tensor) -> Tensor:
        """z ~ N(0, I) (B,D) -> w (B,D)."""
        normalise, *layers = self.style
        w = normalise(z)
        for layer in layers:
            w = leaky(layer(w))
        return w

    def forward(self, w: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """w (B,D), or one per layer (B,styles,D), -> image (B,3,S,S), not clamped.

        noise: one image per convolution, (1 or B,1,H,W). By default the generator's own buffers, so that the result
        is a function of w alone.
        """
        if w.ndim == 2:
            w = w[:, None].expand(-1, self.styles, -1)
        noise = list(self.noises.buffers()) if noise is None else noise
        x = self.conv1(self.input.input.expand(len(w), -1, -1, -1), w[:, 0], noise[0])
        rgb = self.to_rgb1(x, w[:, 1])
        for block, to_rgb in enumerate(self.to_rgbs):
            for i in (2 * block, 2 * block + 1):
                x = self.convs[i](x, w[:, i + 1], noise[i + 1])
            rgb = to_rgb(x, w[:, 2 * block + 3], rgb)
        return rgb


@dataclass
class Gan:
    """A frozen generator in eval mode and fp32, its affine layers folded, ready for a LoRA."""

    name: str
    network: StyleGAN2
    revision: str | None = None


def load_gan(name: str) -> Gan:
    """Load a generator from a folder or a .pt file.

    Raises InputError if it does not exist, is another model, or its weights do not fit together.
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
    """Write the unfolded weights in fp16, and the configuration, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": KIND, "channels": network.channels, "style_dim": network.style_dim}
    (folder / CONFIG).write_text(json.dumps(config | {"depth": len(network.style) - 1}, indent=2) + "\n")
    save_file({key: value.half().contiguous() for key, value in network.state_dict().items()}, folder / WEIGHTS)


def _folder(path: Path) -> tuple[StyleGAN2, dict[str, Tensor]]:
    try:
        config = json.loads((path / CONFIG).read_text())
        if config.get("_class_name") != KIND:
            raise InputError(f"{path}: contains a {config.get('_class_name')}, not a {KIND}")
        check_sums(path)
        channels = {int(side): count for side, count in config["channels"].items()}
        network = StyleGAN2(channels, config["style_dim"], config["depth"])
        return network, {key: value.float() for key, value in load_file(path / WEIGHTS).items()}
    except InputError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, ...
        raise InputError(f"{path}: cannot be read as a {KIND}: {' '.join(str(error).split())[:300]}") from None


def _rosinality(path: Path) -> tuple[StyleGAN2, dict[str, Tensor]]:
    """A generator with the shape of the weights in the file, and the weights."""
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
