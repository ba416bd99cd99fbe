"""What libraries wrap a network in: torch.compile, DDP, FSDP, DeepSpeed."""

from accelerate.utils import extract_model_from_parallel
from torch import nn


def unwrap(network: nn.Module) -> nn.Module:
    """The network itself, whose names and attributes are its own, of any wrappers in any order.

    To be used wherever parameters are named or saved, and wherever anything but a call is wanted of a network.
    """
    while (inner := extract_model_from_parallel(network, keep_torch_compile=False)) is not network:
        network = inner
    return network
