"""The network inside the wrappers of libraries: torch.compile, DDP, FSDP, DeepSpeed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

NAMES = ("_orig_mod", "_fsdp_wrapped_module", "module")  # the child that a wrapper holds, and so a part of its paths


def unwrap(network: "nn.Module") -> "nn.Module":
    """The network inside any wrappers in any order, with its own names and attributes.

    Used wherever parameters are named or saved, and wherever a network is more than called.
    """
    while True:
        # a child; but accelerate keeps the original of a network with compiled parts in __dict__
        held = {**network.__dict__, **network._modules}
        name = next((name for name in NAMES if name in held), None)
        if name is None:
            return network
        network = held[name]
