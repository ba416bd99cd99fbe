"""Weights that are a function of their names and shapes alone: the same for this project's StyleGAN2 and another's."""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def fill(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Standard normal numbers for every tensor of `state`, by numpy, whose generator is the same in all versions."""
    found = {}
    for key, value in state.items():
        rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
        numbers = rng.standard_normal(value.shape) * (100 if key.startswith("style.") and value.ndim == 2 else 1)
        found[key] = torch.from_numpy(numbers.astype(np.float32)) + (1.0 if key.endswith("modulation.bias") else 0.0)
    return found
