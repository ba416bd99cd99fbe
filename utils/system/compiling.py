"""--compile: the UNet through torch.compile, and a plain word where this machine cannot."""

import os
from contextlib import AbstractContextManager

import torch
from torch import nn

from utils.errors import InputError, note

TORCH = torch.__file__


def compile_unet(unet: nn.Module, device: torch.device) -> None:
    """torch.compile `unet`, in place: its names, weights and LoRA stay as they are, its first pass takes a minute.

    Raises InputError where nothing can be compiled: no C++ compiler for a CPU, no Triton for a GPU.
    """
    for variable in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):  # torch.compile would then do nothing
        if os.environ.get(variable, "0") == "1":
            raise InputError(f"--compile: {variable}=1 turns torch.compile off; unset it, or leave the flag out")
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # each backend has its own zoo of them
        reason = " ".join(str(error).split())[:150]
        if " " in TORCH:  # its compiler's command line falls apart there
            cure = f"PyTorch must not lie in a path with a space ({TORCH})"
        elif device.type == "cuda":
            cure = "pip install triton"
        else:
            cure = "install a C++ compiler, as in: apt install g++"
        raise InputError(f"--compile: this machine cannot ({reason}); {cure}, or leave the flag out") from None
    note("the UNet is compiled in its first pass, which takes a minute or so")
    unet.compile(dynamic=False)  # static shapes: Inductor fails on a UNet of symbolic sizes on the CPU


def as_written() -> AbstractContextManager:
    """Inside, what was compiled runs uncompiled: a validation's other shapes are not worth a compilation each."""
    return torch.compiler.set_stance("force_eager")
