"""Moving averages of the LoRA's weights (EMA): what is validated and what files hold, while the weights train on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Averages:
    """average += (1 - d) (weight - average) after every step; d = min(decay, (1 + n) / (10 + n)) after n steps before,
    so that early averages do not hold the beginning. At a decay of 0 there are none, and nothing is done.

    `applied` puts the averages into the network for a while. A checkpoint's LoRA has the averages; what trains on is
    in its state.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self.parameters, self.decay, self.steps = parameters, decay, 0
        self.values = self.weights() if decay else []
        self.aside: list[Tensor] | None = None  # the weights, while the averages are in their place

    def weights(self) -> list[Tensor]:
        """A copy of the network's."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def update(self) -> None:
        """Take in the weights after a step."""
        if self.decay:
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self.parameters], 1 - decay)
            self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the averages as weights, until the end."""
        if not self.decay:
            yield
            return
        self.aside = self.weights()
        self.put(self.values)
        try:
            yield
        finally:
            self.put(self.aside)
            self.aside = None

    @torch.no_grad()
    def put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> Mapping[str, object]:
        return {"steps": self.steps, "weights": self.aside or self.weights(), "averages": self.values}

    def load_state_dict(self, state: Any, /) -> None:
        self.steps = state["steps"]
        self.put(state["weights"])
        for own, value in zip(self.values, state["averages"], strict=True):
            own.copy_(value)
