"""Variants of the recipe: averaged weights (--ema_decay), predicting a residual, starting at another LoRA.

    python -m studies.tried

Each is compared with the usual recipe on the same seeds, labels and unseen images: a LoRA of rank 8 on all layers of
mini-sd, t = 400, 100 steps of 8 labels. The table is written to studies/results/tried.md. Every result is kept in
--work, and the same command continues an interrupted study.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from miniworld.pretraining.report import write_card
from studies.paper_questions import render
from studies.probe import Recipe, Setting, TaskData, errors, falling, load_task, make_unet, place_lora, train
from studies.tables import ratio, table, with_interval
from utils.base_model.stable_diffusion import Base, load_base
from utils.cli import Parser, path_flag
from utils.errors import note, run
from utils.intrinsics import INTRINSICS
from utils.objectives import SingleStep
from utils.system import atomic
from utils.system.compute import slow_bf16
from utils.training.state import Averages

DECAYS = (0.9, 0.98)
FEW = 50  # labels
Errors = Sequence[float | None]


class Residual(SingleStep):
    """The UNet predicts the image's latents minus the map's: unet(z, t, c) = z - z0, z = s E(rgb)."""

    def latents(self, unet: nn.Module, rgb: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.base.scaled(rgb) - super().latents(unet, rgb)


@dataclass
class Bench:
    """Parts shared by all trainings."""

    base: Base
    data: Path
    work: Path
    recipe: Recipe

    def task(self, name: str) -> TaskData:
        return load_task(self.data, name, self.base, self.recipe, self.work)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m studies.tried", description=__doc__)
    add = parser.add_argument
    add("--base", default="miniworld/mini-sd", help="Stable Diffusion")
    add("--data", type=path_flag, help="DIODE-like tree, as for paper_questions; left out: rendered")
    add("--work", type=path_flag, default=Path("output/tried"), help="trainings, latents, rendered scenes")
    add("--docs", type=path_flag, default=Path("studies/results"), help="folder of tried.md")
    add("--seeds", type=int, default=3, help="trainings of each setting")
    add("--steps", type=int, default=100, help="of each training")
    add("--labels", type=int, default=1000, help="of each training but those of few")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    data = args.data or render(args.work / "DIODE", 4 * args.labels, 100)
    precision = "no" if slow_bf16("cpu") else "bf16"
    note(f"trained with --mixed_precision {precision}")
    bench = Bench(load_base(args.base), data, args.work, Recipe(args.steps, 8, precision, 64))
    usual = Setting(targets="all", timestep=400, labels=args.labels)
    few = replace(usual, labels=min(FEW, args.labels))
    depth = replace(usual, task="depth")

    found: dict[str, np.ndarray] = {}
    for name, make in {
        "usual": lambda seed: with_averages(bench, replace(usual, seed=seed), falling),
        "constant": lambda seed: with_averages(bench, replace(usual, seed=seed), lambda share: 1.0),
        "depth": lambda seed: trained(bench, replace(depth, seed=seed)),
        "residual": lambda seed: trained(bench, replace(usual, seed=seed), Residual),
        "residual-depth": lambda seed: trained(bench, replace(depth, seed=seed), Residual),
        "few": lambda seed: trained(bench, replace(few, seed=seed)),
        "begun": lambda seed: begun(bench, replace(usual, seed=seed), depth),
        "begun-few": lambda seed: begun(bench, replace(few, seed=seed), depth),
    }.items():
        each = [
            kept(args.work / f"{name}-{args.steps}-{args.labels}-{precision}-{seed}.json", make, seed)
            for seed in range(args.seeds)
        ]
        for key in each[0]:
            found[f"{name}{key}"] = np.array([one[key] for one in each], float)
    text = table(("tried", "error", "with it", "the usual recipe", "with it / usual"), list(rows(found)))
    write_card(args.docs / "tried.md", text)
    print(text)


def rows(found: dict[str, np.ndarray]):
    """A line for each thing tried."""
    normal, depth = (next(iter(INTRINSICS[task].scores.values())) for task in ("normal", "depth"))
    asked = [
        (f"averaged weights, decay {decay}{where}", normal, f"{rate} {decay}", "usual")
        for rate, where in (("usual", ""), ("constant", ", at a constant rate"))
        for decay in DECAYS
    ]
    asked += [
        ("a constant rate", normal, "constant", "usual"),
        ("the residual z - z0", normal, "residual", "usual"),
        ("the residual z - z0", depth, "residual-depth", "depth"),
        ("begun at a LoRA for depth", normal, "begun", "usual"),
        (f"begun at a LoRA for depth, {FEW} labels", normal, "begun-few", "few"),
    ]
    for title, error, it, other in asked:
        yield title, error, with_interval(found[it]), with_interval(found[other]), ratio(found[it], found[other]).text


def kept(path: Path, make: Callable[[int], dict[str, Errors]], seed: int) -> dict[str, Errors]:
    if not path.is_file():
        made = make(seed)
        atomic.replace(path, lambda part: part.write_text(json.dumps(made)))
    return json.loads(path.read_text())


def learn(
    bench: Bench,
    unet: nn.Module,
    parameters: list[nn.Parameter],
    setting: Setting,
    kind: type[SingleStep] = SingleStep,
    **settings,
) -> Callable[[], Errors]:
    """Train in place; returns what measures the errors of the weights as they are then."""
    intrinsic, data = INTRINSICS[setting.task], bench.task(setting.task)
    objective = kind(bench.base, bench.base.encode_prompt(intrinsic.prompt), setting.timestep)
    train(unet, parameters, objective, data.latents, setting, bench.recipe, **settings)
    return partial(errors, unet, objective, data, intrinsic, bench.recipe)


def trained(bench: Bench, setting: Setting, kind: type[SingleStep] = SingleStep) -> dict[str, Errors]:
    """Errors after one training, by ""."""
    unet = make_unet(bench.base, setting)
    return {"": learn(bench, unet, place_lora(unet, setting), setting, kind)()}


def with_averages(bench: Bench, setting: Setting, rate: Callable[[float], float]) -> dict[str, Errors]:
    """Errors of the last weights, by "", and of their moving averages, by " <decay>"."""
    unet = make_unet(bench.base, setting)
    parameters = place_lora(unet, setting)
    averages = [Averages(parameters, decay) for decay in DECAYS]

    def after() -> None:
        for each in averages:
            each.update()

    measure = learn(bench, unet, parameters, setting, rate=rate, after=after)
    found = {"": measure()}
    for each in averages:
        with each.applied():
            found[f" {each.decay}"] = measure()
    return found


def begun(bench: Bench, setting: Setting, first: Setting) -> dict[str, Errors]:
    """Errors of a training that begins where another intrinsic's ended."""
    unet = make_unet(bench.base, setting)
    parameters = place_lora(unet, setting)
    learn(bench, unet, parameters, replace(first, seed=setting.seed))
    return {"": learn(bench, unet, parameters, setting)()}


if __name__ == "__main__":
    run(main)
