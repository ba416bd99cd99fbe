"""LoRAs on the flow transformer, compared with LoRAs on mini-sd and on random weights: the second half of its gates.

    python -m studies.flow

Single-step normals from a LoRA of rank 8 on all linear layers of mini-flow, at several times, with the same labels in
the same order and the same unseen scenes as a LoRA on all layers of mini-sd. The table is written to mini-flow's card.
Every result is kept in --work, and the same command continues an interrupted study.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from miniworld.pretraining.flow_report import LORA_MARKS
from miniworld.pretraining.model_folder import FLOW_TIME, TIMESTEP
from miniworld.pretraining.report import write_card
from studies.paper_questions import render
from studies.probe import Recipe, Setting, load_task, probe
from studies.tables import table, with_interval
from studies.tried import Errors, kept
from utils.base_model.families import open_base
from utils.cli import Parser, path_flag
from utils.errors import note, run
from utils.system.compute import slow_bf16

TASK, LABELS = "normal", 300
TIMES_TRIED = (0.05, 0.2, 0.4, 0.7)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m studies.flow", description=__doc__)
    add = parser.add_argument
    add("--flow", type=path_flag, default=Path("miniworld/mini-flow"), help="folder of the flow transformer")
    add("--base", default="miniworld/mini-sd", help="the one to compare it with")
    add("--data", type=path_flag, help="DIODE-like tree, as for paper_questions; left out: rendered")
    add("--work", type=path_flag, default=Path("output/flow"), help="trainings, latents, rendered scenes")
    add("--snapshots", type=path_flag, help="pretraining's folder with snapshots (ema-*.pt), to be probed too")
    add("--seeds", type=int, default=1, help="trainings of each setting")
    add("--steps", type=int, default=200, help="of each training, with 8 labels each")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    data = args.data or render(args.work / "DIODE", LABELS, 100)
    recipe = Recipe(args.steps, 8, "no" if slow_bf16("cpu") else "bf16", 64)
    note(f"trained with --mixed_precision {recipe.mixed_precision}")
    bases = {"base": open_base(args.base), "flow": open_base(str(args.flow))}
    tasks = {name: load_task(data, TASK, base, recipe, args.work) for name, base in bases.items()}
    usual = Setting(task=TASK, labels=LABELS, targets="all", timestep=TIMESTEP)
    settings = {"mini-sd, all layers": usual}
    settings |= {f"mini-flow, s = {t:g}": replace(usual, timestep=t, base="flow") for t in TIMES_TRIED}
    best = replace(usual, base="flow", timestep=FLOW_TIME)
    settings["random weights"] = replace(best, unet="random")
    for path in sorted(args.snapshots.glob("ema-*.pt")) if args.snapshots else ():
        settings[f"after {int(path.stem.split('-')[1])} steps"] = replace(best, unet=str(path))

    def trained(setting: Setting, seed: int) -> dict[str, Errors]:
        own = replace(setting, seed=seed)
        return {"": probe(bases[own.base], tasks[own.base], own, recipe)["errors"]}

    lines = []
    for title, setting in settings.items():
        name = f"{setting.name}-{args.steps}-{recipe.mixed_precision}"
        each = [
            kept(args.work / f"{name}-{seed}.json", partial(trained, setting), seed)[""] for seed in range(args.seeds)
        ]
        lines.append((title, with_interval(np.array(each, float))))
    text = table((f"LoRA of rank {usual.rank}, {args.steps} steps of 8 labels", "mean angle, degrees"), lines)
    write_card(args.flow / "README.md", text, LORA_MARKS)
    print(text)


if __name__ == "__main__":
    run(main)
