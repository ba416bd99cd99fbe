"""bfloat16 on a CPU that has no instructions for it: it runs, and is many times slower than float32."""

import torch

from utils.errors import note


def slow_bf16(device_type: str) -> bool:
    """Whether bfloat16 is emulated on this device: an x86 CPU with AVX2 and no AVX-512."""
    return device_type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def warn_of_slow_bf16(dtype: torch.dtype, device_type: str, cure: str) -> None:
    """A note that names `cure`, where `dtype` is bfloat16 and emulated."""
    if dtype == torch.bfloat16 and slow_bf16(device_type):
        note(f"this CPU emulates bfloat16, about ten times slower than float32 ({cure})")
