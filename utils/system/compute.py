"""How a network computes: its dtype, its attention on a CPU and torch.compile."""

import os
from contextlib import AbstractContextManager

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from utils.errors import InputError, note

TORCH = torch.__file__
FEW_KEYS = 256


def compile_unet(unet: nn.Module, device: torch.device) -> None:
    """torch.compile `unet`, in place: its names, weights and LoRA stay as they are, its first pass takes a minute.

    Raises InputError for a quantised network, and where nothing can be compiled: no C++ compiler for a CPU, no Triton
    for a GPU.
    """
    if any(not parameter.is_floating_point() for parameter in unet.parameters()):
        raise InputError("--compile: not tried with --base_precision; leave one out")
    for variable in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):  # torch.compile would then do nothing
        if os.environ.get(variable, "0") == "1":
            raise InputError(f"--compile: {variable}=1 turns torch.compile off; unset it, or leave the flag out")
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # each backend has its own exceptions
        reason = " ".join(str(error).split())[:150]
        if " " in TORCH:  # its compiler's command line breaks at the space
            fix = f"PyTorch must not be in a path with a space ({TORCH})"
        elif device.type == "cuda":
            fix = "pip install triton"
        else:
            fix = "install a C++ compiler, as in: apt install g++"
        raise InputError(f"--compile: this machine cannot ({reason}); {fix}, or leave the flag out") from None
    note("the UNet is compiled in its first pass, which takes a minute or so")
    unet.compile(dynamic=False)  # static shapes: Inductor fails on a UNet of symbolic sizes on the CPU


def as_written() -> AbstractContextManager:
    """Inside, compiled networks run uncompiled: compiling for each of a validation's other shapes would not pay."""
    return torch.compiler.set_stance("force_eager")


def autocasts(device_type: str) -> bool:
    """True if mixed precision is autocast's. On a GPU the network computes in its own dtype instead: autocast would
    cast its norms and the LoRA back and forth, about a fifth of a step's kernels and a quarter of the memory. A CPU is
    not faster without it (SD 1.5 at 512 px on AMX: 6.7 s a step, 5.8 with it).
    """
    return device_type == "cpu"


class AttentionByKeys:
    """Attention that trains in bf16 on a CPU: matrix products and a softmax for at most FEW_KEYS keys, else fused.

    PyTorch's fused kernel is slow there in its backward pass, two to seven times as slow as the products in
    cross-attention. With more keys, in fp32 or without a backward pass it is the faster one (benchmarks/README.md).
    """

    def __init__(self) -> None:
        self.products, self.fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: object,
        **more: object,
    ) -> Tensor:
        keys = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        few = torch.is_grad_enabled() and keys.ndim == 3 and keys.shape[1] <= FEW_KEYS
        return (self.products if few else self.fused)(attn, hidden_states, encoder_hidden_states, *args, **more)


def choose_attention(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Let plain attention layers of `network` use `AttentionByKeys`, in place, where it is the faster one."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return
    for layer in network.modules():
        if isinstance(layer, Attention) and type(layer.processor) is AttnProcessor2_0:
            layer.set_processor(AttentionByKeys())


def runs_ahead(device_type: str) -> bool:
    """True if the device works on what it was given while the host continues: a GPU."""
    return device_type == "cuda"


def move_frozen(network: nn.Module, device: torch.device) -> None:
    """Move the parameters that do not train, in place; those that do stay where their optimiser knows them."""
    for parameter in network.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(device)


def dtype_of(name: str) -> torch.dtype:
    """ "bf16" -> torch.bfloat16, and so on."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


def slow_bf16(device_type: str) -> bool:
    """True if bfloat16 is emulated: on x86 CPUs with AVX2 and no AVX-512, and on NVIDIA GPUs before Ampere."""
    if device_type == "cuda":
        return torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def warn_of_slow_bf16(dtype: torch.dtype, device_type: str, instead: str) -> None:
    """A note that recommends `instead`, where `dtype` is bfloat16 and emulated."""
    if dtype == torch.bfloat16 and slow_bf16(device_type):
        slower = "; fp16 is fast on it" if device_type == "cuda" else ", about ten times slower than float32"
        note(f"this {'GPU' if device_type == 'cuda' else 'CPU'} emulates bfloat16{slower} ({instead})")
