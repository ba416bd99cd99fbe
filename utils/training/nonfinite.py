"""Losses and gradients that are no numbers: the update is skipped, counted, and too many in a row end the run."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor

from utils.errors import InputError, warn
from utils.training import checkpoint


class Skipped:
    """How many updates were skipped, in all and in a row. Part of a run's state: a resumed run counts on."""

    def __init__(self, limit: int):
        self.limit, self.total, self.in_a_row = limit, 0, 0

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def count(
        self, step: int, loss: float, norm: float, losses: Tensor, stems: Sequence[Sequence[str]], output_dir: Path
    ) -> None:
        """Call after each step, in every process; loss and norm are what all processes agree on.

        losses (M,), stems: of this process's M micro-batches; the files named are those of its non-finite losses, or
        of all where only the gradient is not finite.

        Raises:
            InputError: as many in a row as allowed.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        bad = (~torch.isfinite(losses)).tolist()
        mine = [stem for wrong, batch in zip(bad, stems) if wrong or math.isfinite(loss) for stem in batch]
        files = ", ".join(sorted(set(gather_object(mine))))
        what = f"step {step}: loss {loss:g}, gradient norm {norm:g}, update skipped ({self.in_a_row} in a row)"
        warn(f"{what}; in the batch: {files}")
        if self.in_a_row >= self.limit:
            raise InputError(
                f"{what}, as many as --max_nonfinite allows; in the batch: {files}; last good "
                f"checkpoint: {checkpoint.last_good(output_dir)}; "
                "look at these files, lower --learning_rate, or train in fp32 or bf16"
            )
