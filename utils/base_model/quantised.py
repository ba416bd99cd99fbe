"""The frozen network's linear layers in 8 or 4 bits, under a LoRA that stays in fp32 (QLoRA, arXiv 2305.14314).

int8    one scale per output: w is about scale * code, code -127 to 127; 8 bits a weight
nf4     one scale per 64 consecutive weights, and the nearest of 16 quantiles of a normal distribution (QLoRA, section
        3 and appendix E); 4.25 bits a weight in half precision

Each layer is quantised as it is read from the file, so that the network is never in memory in 16 or 32 bits. Only
memory is saved: each pass makes a layer's weights again, in the run's precision, and computes with these.

PyTorch alone does this, on a CPU as on a GPU, because no library fits: bitsandbytes' 8-bit layers cast their input to
fp16, whose range transformers leave, and diffusers loads with it on a GPU only; torchao's tensors do not survive
`parameter.data = ...`; optimum-quanto is deprecated in diffusers. nf4's codes are those of bitsandbytes.
"""

import re
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from utils.lora.targets import kind_of

QUANTISED = ("attention", "feedforward", "modulation")  # kinds of layers (utils/lora/targets.py); others are small
BLOCK = 64  # weights of a scale in nf4
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
WEIGHT_FILES = re.compile(r"diffusion_pytorch_model(\.fp16)?(-\d{5}-of-\d{5})?(\.fp16)?\.safetensors")


class QuantisedLinear(nn.Linear):
    """A frozen linear layer: weight (out,in) of int8, or (out,in/2) of uint8 with two nf4 codes in each byte, and
    `scale`, (out,1) or (out*in/64,), in the dtype that it computes in.

    layer: has the shape and the bias; weight: (out,in), what is quantised. Raises ValueError for NaN or infinity.
    """

    def __init__(self, layer: nn.Linear, weight: Tensor, precision: str, dtype: torch.dtype):
        nn.Module.__init__(self)  # nn.Linear's own would make weights
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        codes, scale = quantise_int8(weight, dtype) if precision == "int8" else quantise_nf4(weight, dtype)
        if not scale.is_meta and not torch.isfinite(scale).all():
            raise ValueError("a weight is NaN or infinite, or too large for the run's precision")
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", scale)
        pairs = torch.tensor(list(product(LEVELS, LEVELS)), dtype=dtype, device=scale.device)
        self.register_buffer("pairs", pairs, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight, self.scale, self.pairs, self.bias)

    def dequantised(self) -> Tensor:
        """The weights (out,in) that it computes with."""
        return _dequantised(self.weight, self.scale, self.pairs)


class _Product(torch.autograd.Function):
    """x W^T + b, of which only W's codes are kept until the backward pass: W itself would cost what they save."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, pairs: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scale, pairs)
        return F.linear(x, _dequantised(codes, scale, pairs), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None, None]:
        weight = _dequantised(*ctx.saved_tensors)
        return grads[0].to(weight.dtype) @ weight, None, None, None, None


def _dequantised(codes: Tensor, scale: Tensor, pairs: Tensor) -> Tensor:
    """(out,in) in scale's dtype. pairs (256,2): the two levels of a byte."""
    if codes.dtype == torch.int8:
        return codes.to(scale.dtype).mul_(scale)
    values = pairs.index_select(0, codes.flatten().int())
    return values.view(-1, BLOCK).mul_(scale[:, None]).view(len(codes), -1)


def quantise_int8(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(out,in) -> codes, int8, and scale (out,1) in `dtype`, in whose rounding the codes are found."""
    weight = weight.float()
    scale = (weight.abs().amax(1, keepdim=True) / 127).to(dtype)
    codes = weight / scale.masked_fill(scale == 0, 1).float()
    return codes.round_().clamp_(-127, 127).to(torch.int8), scale


def quantise_nf4(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(out,in) -> codes, uint8 (out,in/2), the first of two in the upper half, and scale (out*in/64,) in `dtype`."""
    blocks = weight.float().reshape(-1, BLOCK)
    scale = blocks.abs().amax(1).to(dtype)
    levels = torch.tensor(LEVELS, device=weight.device)
    parts = blocks / scale.masked_fill(scale == 0, 1).float()[:, None]
    codes = torch.bucketize(parts, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8)
    upper, lower = codes.view(*weight.shape).unflatten(1, (-1, 2)).unbind(2)
    return upper << 4 | lower, scale


def layers_to_quantise(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the kinds QUANTISED whose weights are whole blocks, by name."""
    found = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    return {
        name: layer
        for name, layer in found.items()
        if kind_of(name) in QUANTISED and layer.in_features % 2 == 0 == layer.in_features * layer.out_features % BLOCK
    }


def quantise(network: nn.Module, precision: str, dtype: torch.dtype) -> None:
    """Quantise a network that is in memory, in place, layer by layer."""
    for name, layer in layers_to_quantise(network).items():
        network.set_submodule(name, QuantisedLinear(layer, layer.weight, precision, dtype))


def load_quantised(kind: Any, folder: Path, precision: str, dtype: torch.dtype) -> nn.Module:
    """A network of diffusers' class `kind` from its folder of .safetensors files, one tensor at a time: all that is
    not quantised in `dtype`, as `from_pretrained` would have it.

    Raises ValueError where weights are missing, there twice, not finite or of another shape.
    """
    with init_empty_weights():
        network = kind.from_config(kind.load_config(folder))
    layers, expected, read = layers_to_quantise(network), set(network.state_dict()), set()
    for file in weight_files(folder):
        with safe_open(file, "pt") as opened:
            for key in expected.intersection(opened.keys()):
                value, (path, _, name) = opened.get_tensor(key), key.rpartition(".")
                module = network.get_submodule(path)
                if key in read:
                    raise ValueError(f"{key} is in several files; leave one set of weights in the folder")
                if value.shape != getattr(module, name).shape:
                    raise ValueError(f"{key} has the shape {list(value.shape)}, not the one that config.json leads to")
                if name == "weight" and path in layers:
                    network.set_submodule(path, QuantisedLinear(layers[path], value, precision, dtype))
                elif name in module._buffers:
                    module._buffers[name] = value
                else:
                    setattr(module, name, nn.Parameter(value.to(dtype), requires_grad=False))
                read.add(key)
    if lost := sorted(expected - read):
        raise ValueError(f"{len(lost)} of its weights are not in its .safetensors files, e.g. {lost[0]}")
    return nn.Module.to(network, dtype)


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors files of a network, in full precision if there are both. ValueError if there are none."""
    found = [file for file in sorted(folder.glob("*.safetensors")) if WEIGHT_FILES.fullmatch(file.name)]
    whole = [file for file in found if ".fp16" not in file.name]
    if not found:
        raise ValueError("no .safetensors file of diffusers there, which --base_precision reads layer by layer")
    return whole or found
