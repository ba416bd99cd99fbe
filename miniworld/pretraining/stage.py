"""One stage of the pretraining: a training loop that resumes bit-exactly after an interruption.

Its folder contains `state.pt` (weights, moving averages, optimiser, step), `log.jsonl`, sample sheets and snapshots. A
batch and its noise are functions of (seed, stage, step), not of earlier draws, so that an interrupted run repeats and
misses nothing. Running the same command again resumes.
"""

import json
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

Losses = dict[str, Tensor]


@dataclass
class Stage:
    """One stage: what to train and for how long. `loss` returns weighted losses by name, whose sum is minimised."""

    name: str
    folder: Path
    modules: dict[str, nn.Module]
    loss: Callable[[int, Generator], Losses]
    sheet: Callable[[dict[str, nn.Module], Path], None]
    steps: int
    learning_rate: float
    seed: int = 0
    warmup: int = 100
    cooldown: float = 0.3  # share of the steps, at the end, over which the learning rate falls linearly to 0
    cycles: int = 1  # cycles of the learning rate (warm restarts, arXiv 1608.03983)
    ema_decay: float = 0.998
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    log_every: int = 50
    save_every: int = 250
    sheet_every: int = 1000
    snapshots: tuple[int, ...] = ()
    weights: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = [weight for module in self.modules.values() for weight in module.parameters()]

    def rate(self, step: int) -> float:
        """Learning rate of step 0..steps-1: up, level, down. A longer run has the same steps before its descent."""
        length = math.ceil(self.steps / self.cycles)
        step %= length
        left = (length - step) / max(1, round(self.cooldown * length))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, left)

    def rng(self, step: int) -> Generator:
        """The step's own random numbers."""
        return Generator().manual_seed(zlib.crc32(f"{self.seed}/{self.name}/{step}".encode()))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "state.pt"

    def snapshot(self, step: int) -> Path:
        """The file of the moving averages after `step` steps."""
        return self.folder / f"ema-{step:06d}.pt"


def snapshot_steps(total: int) -> tuple[int, ...]:
    """Steps with a snapshot: from 64, each sqrt(2) times the previous one, because early steps change the most, and
    the last step.
    """
    steps = (round(64 * 2 ** (index / 2)) for index in range(40))
    return (*(step for step in steps if step < total), total)


def run_stage(stage: Stage) -> dict[str, nn.Module]:
    """Train or resume to the last step. Returns the modules with their moving averages as weights."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    settings = {"lr": stage.learning_rate, "betas": stage.betas, "weight_decay": stage.weight_decay}
    optimizer = torch.optim.AdamW(stage.weights, **settings)
    average = [weight.detach().clone() for weight in stage.weights]
    first = load(stage, optimizer, average)
    last_time, last_log = time.time(), first
    bar = tqdm(range(first, stage.steps), initial=first, total=stage.steps, desc=stage.name, mininterval=2)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        losses = stage.loss(step, stage.rng(step))
        sum(losses.values()).backward()
        norm = nn.utils.clip_grad_norm_(stage.weights, stage.clip)
        optimizer.step()
        optimizer.zero_grad()
        # the decay rises over the first steps, so that early averages do not contain the initial weights
        decay = min(stage.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, stage.weights, 1 - decay)
        done = step + 1
        if done % stage.log_every == 0 or done == stage.steps:
            record = {"step": done, **{name: round(loss.item(), 6) for name, loss in losses.items()}}
            seconds = (time.time() - last_time) / (done - last_log)
            record |= {
                "grad_norm": round(norm.item(), 4),
                "lr": stage.rate(step),
                "seconds_per_step": round(seconds, 3),
            }
            bar.set_postfix({name: f"{loss.item():.4f}" for name, loss in losses.items()}, refresh=False)
            log(stage, record)
            last_time, last_log = time.time(), done
        if done in stage.snapshots:
            save_atomically(named(stage, average), stage.snapshot(done))
        if done % stage.save_every == 0 or done == stage.steps:
            save(stage, optimizer, average, done)
        if done % stage.sheet_every == 0 or done == stage.steps:
            write_sheet(stage, average, done)
    assign(stage, average)
    return stage.modules


def log(stage: Stage, record: dict) -> None:
    with (stage.folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def write_sheet(stage: Stage, average: list[Tensor], step: int) -> None:
    """Write a sample sheet of the averaged weights."""
    trained = [weight.detach().clone() for weight in stage.weights]
    assign(stage, average)
    with torch.no_grad():
        stage.sheet(stage.modules, stage.folder / f"sheet-{step:06d}.png")
    assign(stage, trained)


@torch.no_grad()
def assign(stage: Stage, values: list[Tensor]) -> None:
    for weight, value in zip(stage.weights, values):
        weight.copy_(value)


def named(stage: Stage, values: list[Tensor]) -> dict[str, dict[str, Tensor]]:
    """Module -> parameter name -> value."""
    rest = iter(values)
    return {name: {key: next(rest) for key, _ in module.named_parameters()} for name, module in stage.modules.items()}


def save(stage: Stage, optimizer: torch.optim.Optimizer, average: list[Tensor], step: int) -> None:
    state = {"step": step, "weights": [weight.detach() for weight in stage.weights], "average": average}
    save_atomically(state | {"optimizer": optimizer.state_dict()}, stage.checkpoint)


def save_atomically(content, path: Path) -> None:
    """Write the whole file or none of it."""
    draft = path.with_suffix(".tmp")
    torch.save(content, draft)
    draft.replace(path)


def load(stage: Stage, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> int:
    """Restore what `save` wrote, if anything, and cut the log there. Returns the number of steps done."""
    if not stage.checkpoint.exists():
        return 0
    state = torch.load(stage.checkpoint, weights_only=True)
    assign(stage, state["weights"])
    for mean, value in zip(average, state["average"]):
        mean.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    path = stage.folder / "log.jsonl"
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= state["step"]]
        path.write_text("".join(line + "\n" for line in lines))
    return state["step"]
