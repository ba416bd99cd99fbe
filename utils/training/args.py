"""The training scripts' shared flags: the released names, in four groups, every one of them read or refused.

A script takes `training_parser(__doc__)`, replaces defaults with `set_defaults(...)` where the paper's recipe differs,
and calls `parse`. Flags of the released code that did nothing there either work here or are refused with a reason.
"""

import argparse
import json
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from utils.cli import Parser
from utils.errors import InputError, note
from utils.hub.names import check_base
from utils.lora.targets import parse_targets
from utils.system.processes import start_missing
from utils.tracking.settings import TrackingSettings
from utils.training.checks import (
    check_data,
    check_numbers,
    check_resolution,
    check_tracker_names,
    refuse_dead_flags,
    trackers_of,
)
from utils.training.flags import (
    data_flags,
    model_flags,
    needed_flags,
    optimisation_flags,
    run_flags,
    state_meanings,
    tracking_flags,
)
from utils.training.settings import OptimizerSettings, RunSettings, Settings

RECOMMENDED = "recommended_settings.json"  # in a base model's folder
RECOMMENDABLE = {"learning_rate": 1e-4, "timestep": 999, "resolution": 512}
DEAD = ("dataset_name", "snr_gamma", "enable_xformers_memory_efficient_attention")  # refused by every script
SINGLE_STEP_REFUSES = {
    "noise_offset": "a single step has no noise; leave it out",
    "prediction_type": "a single step predicts the label's latents, whatever the base predicts; leave it out",
}
AUGUNET_REFUSES = {
    "prediction_type": "where the last step is pure noise, only velocity says anything there; leave it out",
    "timestep": "diffusion runs through all timesteps; leave it out",
}


def training_parser(description: str, refused: Mapping[str, str]) -> Parser:
    """Every flag that the training scripts share.

    refused: flag -> why this method cannot take another value than its default; such flags are not in the help.
    """
    usage = "%(prog)s --pretrained_model_name_or_path BASE --train_data_dir DIR --pseudo_root DIR --output_dir DIR ..."
    parser = Parser(description=description, usage=f"accelerate launch {usage}")
    needed_flags(parser.add_argument_group("what must be given"))
    model_flags(parser.add_argument_group("model and LoRA"))
    data_flags(parser.add_argument_group("data"))
    optimisation_flags(parser.add_argument_group("optimisation"))
    run_flags(parser.add_argument_group("run"))
    tracking_flags(parser.add_argument_group("trackers and hub"))
    refuse(parser, refused, DEAD)
    state_meanings(parser)
    parser.only("cache_dir", lambda a: not a.no_cache_latents, "with --no_cache_latents")
    return parser


def refuse(parser: Parser, refused: Mapping[str, str], hidden: Collection[str] = ()) -> None:
    """Flags whose other values than the default `check_refused` turns away, each with its reason; neither these nor
    the `hidden` ones are in the help.
    """
    parser.set_defaults(refused=dict(refused))
    for action in parser._actions:  # argparse has no public way to hide a flag after it was added
        if action.dest in (*refused, *hidden):
            action.help = argparse.SUPPRESS


def check_refused(parser: Parser, args: argparse.Namespace) -> None:
    """Take `refused` out of `args`. InputError for a refused flag that has another value than its default."""
    for name, reason in vars(args).pop("refused").items():
        if getattr(args, name) != parser.get_default(name):
            raise InputError(f"--{name}={getattr(args, name)}: {reason}")


def parse(parser: Parser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags, and start the launch's missing processes, before anything is loaded.

    Where the base is a folder with recommended settings (RECOMMENDED), they replace defaults, with a note. Adds
    `args.prompt`, the string the text encoder gets, and `args.trackers`, a list out of wandb and tensorboard.
    Raises InputError for a flag that cannot work, with the reason and the replacement.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    given = {word.split("=")[0] for word in argv if word.startswith("--")}
    refuse_dead_flags(args)
    _recommend(args, given)
    check_data(args, given)
    check_refused(parser, args)
    if args.empty_prompt and "--unified_prompt" in given:
        raise InputError("--empty_prompt and --unified_prompt exclude each other: leave one out")
    if not args.empty_prompt and args.unified_prompt is None:
        raise InputError("no prompt: pass --unified_prompt='...' or --empty_prompt")
    args.prompt = "" if args.empty_prompt else args.unified_prompt
    if "lora_targets" not in parser.get_default("refused"):
        args.lora_targets = ",".join(parse_targets(args.lora_targets))
    finish(args, given)
    check_resolution(args)
    check_base(args.pretrained_model_name_or_path, args.revision)
    start_missing()
    return args


def finish(args: argparse.Namespace, given: set[str]) -> None:
    """Check and complete, in place, what every training has, whatever it trains. given: the flags that were passed."""
    check_numbers(args)
    args.typed = frozenset(flag.removeprefix("--") for flag in given)
    if "--num_train_epochs" in given and "--max_train_steps" not in given:
        args.max_train_steps = None  # the script's default number of steps must not win over epochs asked for
    elif "--num_train_epochs" in given:
        note("--num_train_epochs means nothing with --max_train_steps, which wins")
    if args.max_train_steps is None and args.num_train_epochs is None:
        raise InputError("no length: pass --max_train_steps or --num_train_epochs")
    args.trackers = trackers_of(args.report_to)
    if not args.output_dir.strip():
        raise InputError("--output_dir is empty: name a folder")
    if Path(args.logging_dir).is_absolute() or ".." in Path(args.logging_dir).parts:
        raise InputError(f"--logging_dir={args.logging_dir}: must lie inside --output_dir, as in: logs")
    args.tags = [tag.strip() for tag in args.tracker_tags.split(",") if tag.strip()]
    check_tracker_names(args)
    if args.local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))


def settings_of(args: argparse.Namespace) -> Settings:
    """The parsed flags as plain values for the loop. The flags of data and model stay with the script."""

    def pick(kind: type) -> dict[str, Any]:  # argparse checks its values at run time: they have no static type
        return {field.name: getattr(args, field.name) for field in fields(kind) if hasattr(args, field.name)}

    run = pick(RunSettings) | {
        "output_dir": Path(args.output_dir),
        "cache_dir": args.cache_dir and Path(args.cache_dir),
    }
    flags = {name: value for name, value in vars(args).items() if name not in ("hub_token", "typed")}
    tracking = pick(TrackingSettings) | {"trackers": tuple(args.trackers), "tags": tuple(args.tags), "flags": flags}
    return Settings(RunSettings(**run), OptimizerSettings(**pick(OptimizerSettings)), TrackingSettings(**tracking))


def _recommend(args: argparse.Namespace, given: set[str]) -> None:
    """Defaults are the paper's, for Stable Diffusion; a small base needs others, and says so in its folder."""
    file = Path(args.pretrained_model_name_or_path) / RECOMMENDED
    if not file.is_file():
        return
    try:
        wanted = json.loads(file.read_text())
        wanted = {name: type(RECOMMENDABLE[name])(value) for name, value in wanted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        names = ", ".join(RECOMMENDABLE)
        raise InputError(f"{file}: not an object of numbers for {names} ({type(error).__name__}: {error})") from None
    taken = {name: value for name, value in wanted.items() if f"--{name}" not in given and name not in args.refused}
    for name, value in taken.items():
        setattr(args, name, value)
    if taken:
        words = " ".join(f"--{name} {value:g}" for name, value in taken.items())
        note(f"{args.pretrained_model_name_or_path} recommends {words}, where you gave none")
