"""Count the GPU memory of a training step on Stable Diffusion 1.5 at 512 pixels: frozen UNet and kept activations.

    python -m benchmarks.activations

Nothing is computed: on PyTorch's meta device tensors have a size and no content. An activation is what autograd keeps
for the backward pass. Attention keeps query, key, value and output, as fused kernels do. In bf16 the norms keep fp32,
as under autocast. Driver, allocator and temporary buffers are not counted.
"""

import json
from unittest import mock

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from utils.cli import Parser
from utils.lora import add_lora
from utils.paths import ROOT

CASES = ((4, False, False), (2, False, False), (2, True, False), (1, True, True))  # images, bf16, checkpointing
CONFIG = ROOT / "utils" / "base_model" / "sd1" / "unet" / "config.json"


class FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps, without its arithmetic."""

    @staticmethod
    def forward(ctx, query, key, value):  # type: ignore[no-untyped-def]
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


def fused(query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
    return FusedAttention.apply(query, key, value)


def count(batch: int, half: bool, recompute: bool) -> tuple[float, float]:
    """Bytes of the UNet's weights, and of the activations kept, with those of the largest block if recomputed."""
    dtype = torch.bfloat16 if half else torch.float32
    kept: dict[int, Tensor] = {}
    largest = 0

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    def recomputed(block: nn.Module, *inputs: object) -> object:
        nonlocal largest
        before = set(kept)
        output = block(*inputs)
        largest = max(largest, size([kept.pop(key) for key in set(kept) - before]))
        for each in inputs:
            if isinstance(each, Tensor):
                keep(each)
        return output

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads(CONFIG.read_text()))
        unet.requires_grad_(False)
        add_lora(unet, 8)
        unet.to(dtype).train()
        for module in unet.modules():
            if half and isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                module.float()
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
                module.register_forward_hook(lambda _, __, output: output.to(dtype))
        if recompute:
            unet.enable_gradient_checkpointing(recomputed)
        own = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
        latents, prompt = torch.empty(batch, 4, 64, 64, dtype=dtype), torch.empty(batch, 77, 768, dtype=dtype)
        attention = mock.patch.object(functional, "scaled_dot_product_attention", fused)
        with attention, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            unet(latents, torch.full((batch,), 999), prompt)
    return size(list(unet.parameters())), size(list(kept.values())) + largest


def size(tensors: list[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def main() -> None:
    for batch, half, recompute in CASES:
        weights, activations = (value / 1e9 for value in count(batch, half, recompute))
        name = f"{batch} images, {'bf16' if half else 'fp32'}{', --gradient_checkpointing' if recompute else ''}"
        print(f"{name}: {weights:.2f} GB + {activations:.2f} GB = {weights + activations:.1f} GB")


if __name__ == "__main__":
    Parser(prog="python -m benchmarks.activations", description=__doc__).parse_args()
    main()
