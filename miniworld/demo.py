"""The whole pipeline in minutes: render scenes, train a LoRA, predict maps of unseen images, score them, look at them.

    python -m miniworld.demo                                    surface normals in a single step
    python -m miniworld.demo --task depth                       or albedo, or shading
    python -m miniworld.demo --timestep 999                     at the paper's timestep
    python -m miniworld.demo --method augunet                   by diffusion
    python -m miniworld.demo --base miniworld/mini-flow         on a flow transformer instead of a UNet
    python -m miniworld.demo --all                              also the slowest control: a LoRA on a random network
    python -m miniworld.demo --page                             one page with all runs so far

Every step runs the same command that a user with DIODE and Stable Diffusion runs. The LoRA sits on all kinds of
layers. A LoRA on attention alone, as in the paper, is one row of the single step's table. The other rows are the
errors of baselines, measured in the same run by the same command (`miniworld.references`). The LoRA on a randomly
initialised UNet is trained with --all; without it, the default run shows its recorded errors.
"""

import argparse
import json
from pathlib import Path

from utils.cli import Parser, above_zero, number, path_flag
from utils.errors import InputError, run
from utils.intrinsics import INTRINSICS

HERE = Path(__file__).resolve().parent
BASES = {"single": HERE / "mini-sd", "augunet": HERE / "mini-sd-2"}  # for SD 1.5 and SD 2.1, the paper's
STEPS = {"single": 300, "augunet": 1000}
TIMESTEP = 400  # at the paper's 999, mini-sd predicts nearly its input, which the LoRA would have to undo first


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--out", type=path_flag, default=Path("demo"), help="folder for everything (default: demo)")
    add("--task", choices=INTRINSICS, default="normal", help="what to predict (default: normal)")
    add("--method", choices=list(STEPS), default="single", help="one UNet pass, or diffusion (default: single)")
    add(
        "--base",
        type=path_flag,
        help="folder of the base model: also miniworld/mini-flow, a flow transformer (default: miniworld/mini-sd; for "
        "diffusion mini-sd-2)",
    )
    add(
        "--timestep",
        type=number,
        help="timestep of the single step; the paper's is 999 (default: the base's recommended_settings.json: 400, or "
        "0.4 of mini-flow)",
    )
    add("--steps", type=int, help="training steps (default: 300 of 8 labels; for diffusion 1,000)")
    add("--train", type=int, default=300, help="labelled scenes (default: 300)")
    add("--val", type=int, default=100, help="unseen scenes (default: 100)")
    add("--seed", type=int, default=0, help="seed of the scenes (default: 0)")
    add("--all", action="store_true", help="also train a LoRA on a randomly initialised UNet")
    add("--only_lora", action="store_true", help="do not train the LoRAs for comparison")
    add("--keep", type=path_flag, help="also write the LoRA into this folder in half precision, for shipping")
    add("--page", action="store_true", help="train nothing: collect the tables and images in --out")
    flags = "task method base timestep steps train val seed all only_lora keep"
    parser.only(flags, lambda a: not a.page, "with --page, which trains nothing")
    parser.only("all", lambda a: not a.only_lora, "with --only_lora")
    parser.only("timestep", lambda a: a.method == "single", "by diffusion, which runs through all timesteps")
    args = parser.parse_args(argv)
    recorded = {name: parser.get_default(name) for name in ("task", "method", "base", "steps", "train", "val", "seed")}
    args.show_recorded = not args.only_lora and all(getattr(args, name) == value for name, value in recorded.items())
    args.steps = STEPS[args.method] if args.steps is None else args.steps
    args.base = BASES[args.method] if args.base is None else args.base
    above_zero(args, ("steps", "train", "val"))
    if args.seed < 0:
        raise InputError(f"--seed={args.seed}: must not be negative")
    if not (args.base / "model_index.json").is_file():
        raise InputError(f"--base={args.base}: not a base model's folder (it has no model_index.json)")
    settings = args.base / "recommended_settings.json"
    recommended = json.loads(settings.read_text()) if settings.is_file() else {}
    args.show_recorded &= args.timestep in (None, TIMESTEP)
    args.timestep = recommended.get("timestep", TIMESTEP) if args.timestep is None else args.timestep
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    from miniworld.demo_steps import (
        run_demo,
        write_page,
    )  # only now: PyTorch takes seconds to import, --help should not

    write_page(args.out) if args.page else run_demo(args)


if __name__ == "__main__":
    run(main)
