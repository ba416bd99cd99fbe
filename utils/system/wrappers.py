"""The network inside the wrappers of libraries: torch.compile, DDP, FSDP, DeepSpeed."""

from accelerate.utils import extract_model_from_parallel
from torch import nn


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside any wrappers in any order, with its own names and attributes.

    Used wherever parameters are named or saved, and wherever a network is more than called.
    """
    while (inner := extract_model_from_parallel(network, keep_torch_compile=False)) is not network:
        network = inner
    return network
