"""From the training scripts' command line to `Settings`: every flag is read or refused, before anything is loaded.

A script takes `training_parser(__doc__)`, replaces defaults with `set_defaults(...)` where the paper's recipe differs,
and calls `parse`. Flags of the released code that did nothing there either work here or are refused with a reason.
The flags themselves are in flags.py.
"""

import argparse
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from utils.base_model.names import check_base
from utils.cli import Parser, expand, number
from utils.errors import InputError, note
from utils.image_io.diode_names import check_trees
from utils.lora.targets import parse_targets
from utils.paths import check_own_folders
from utils.system.atomic import json_object
from utils.system.processes import start_missing
from utils.training.flags import (
    data_flags,
    model_flags,
    needed_flags,
    optimisation_flags,
    run_flags,
    state_meanings,
    tracking_flags,
)
from utils.training.settings import Settings

RECOMMENDED = "recommended_settings.json"  # in a base model's folder
RECOMMENDABLE: Mapping[str, Callable] = {
    "learning_rate": float,
    "timestep": number,
    "resolution": int,
    "augment_from": str,
}
SOME_READ = ("scene_types", "list_from", "val_fraction", "gt_frame", "mix")  # flags of some kinds of data sets
DECIMALS = 4  # limit of a share; it bounds the window of `utils.training.data.quotas`
DEAD = ("dataset_name", "snr_gamma", "enable_xformers_memory_efficient_attention")  # refused by every script
TRACKERS = ("wandb", "tensorboard")
NOT_KEPT = (
    "hub_token",
    "resume_from_checkpoint",
    "force_resume",
    "local_rank",
)  # in recipe.txt: a secret; one start's
NOT_SHOWN = ("hub_token", "typed", "script", "recipe")  # in the trackers' configuration
POSITIVE = (
    "rank", "resolution", "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps", "learning_rate",
    "max_nonfinite", "num_train_imgs", "num_val_imgs", "max_train_samples", "max_train_steps", "num_train_epochs",
    "checkpoints_total_limit", "max_hours",
)  # fmt: skip
NOT_NEGATIVE = (
    "max_grad_norm", "lr_warmup_steps", "validation_steps", "dataloader_num_workers", "seed", "adam_weight_decay",
    "adam_epsilon",
)  # fmt: skip
LIMITS = {"seed": 2**32 - 1, "rank": 1280, "dataloader_num_workers": 1024}  # rank: Stable Diffusion's widest attention
SINGLE_STEP_REFUSES = {
    "noise_offset": "a single step has no noise; leave it out",
    "prediction_type": "a single step predicts the label's latents, whatever the base predicts; leave it out",
}
AUGUNET_REFUSES = {
    "prediction_type": "the last step is pure noise, where only velocity carries information; leave it out",
    "timestep": "diffusion runs through all timesteps; leave it out",
}


def training_parser(description: str, refused: Mapping[str, str]) -> Parser:
    """Every flag that the training scripts share.

    refused: flag -> why this method cannot take another value than its default; such flags are not in the help.
    """
    usage = "%(prog)s --pretrained_model_name_or_path BASE --train_data_dir DIR --pseudo_root DIR --output_dir DIR ..."
    parser = Parser(description=description, usage=f"python {usage}")
    needed_flags(parser.add_argument_group("what must be given"))
    model_flags(parser.add_argument_group("model and LoRA"))
    data_flags(parser.add_argument_group("data"))
    optimisation_flags(parser.add_argument_group("optimisation"))
    run_flags(parser.add_argument_group("run"))
    tracking_flags(parser.add_argument_group("trackers and hub"))
    refuse(parser, refused, DEAD)
    state_meanings(parser)
    parser.several["--train_data_dir"] = (
        "--train_data_dir takes one folder, or with --mix several joined by commas: --train_data_dir a,b --mix 0.9,0.1"
    )
    parser.only("cache_dir", lambda a: not a.no_cache_latents, "with --no_cache_latents")
    return parser


def refuse(parser: Parser, refused: Mapping[str, str], hidden: Collection[str] = ()) -> None:
    """Set the flags that `check_refused` accepts at their default only, each with its reason. Neither these nor the
    `hidden` ones are in the help.
    """
    parser.set_defaults(refused=dict(refused))
    for action in parser._actions:  # argparse has no public way to hide a flag after it was added
        if action.dest in (*refused, *hidden):
            action.help = argparse.SUPPRESS


def check_refused(parser: Parser, args: argparse.Namespace) -> None:
    """Take `refused` out of `args`. InputError for a refused flag whose value is not its default."""
    for name, reason in vars(args).pop("refused").items():
        if getattr(args, name) != parser.get_default(name):
            raise InputError(f"--{name}={getattr(args, name)}: {reason}")


def parse(parser: Parser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags, and start the launch's missing processes, before anything is loaded.

    Where the base is a folder with recommended settings (RECOMMENDED), they replace defaults, with a note. Adds
    `args.prompt`, the text encoder's input, and `args.trackers`, out of wandb and tensorboard.
    Raises InputError for a flag that cannot work, with the reason and the replacement.
    """
    args = parser.parse_args(argv)
    given = parser.given
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
    finish(parser, args)
    check_resolution(args)
    check_folders(args)
    check_base(args.pretrained_model_name_or_path, args.revision)
    start_missing()
    return args


def finish(parser: Parser, args: argparse.Namespace) -> None:
    """Check and complete, in place, the flags that every training has."""
    check_numbers(args)
    given = parser.given
    args.typed = frozenset(flag.removeprefix("--") for flag in given)
    if "--num_train_epochs" in given and "--max_train_steps" not in given:
        args.max_train_steps = None  # a typed number of epochs wins over the script's default number of steps
    elif "--num_train_epochs" in given:
        note("--num_train_epochs means nothing with --max_train_steps, which wins")
    if args.max_train_steps is None and args.num_train_epochs is None:
        raise InputError("no length: pass --max_train_steps or --num_train_epochs")
    args.trackers = trackers_of(args.report_to)
    if not args.output_dir.strip():
        raise InputError("--output_dir is empty: name a folder")
    if Path(args.logging_dir).is_absolute() or ".." in Path(args.logging_dir).parts:
        raise InputError(f"--logging_dir={args.logging_dir}: must be inside --output_dir, as in: logs")
    args.tags = [tag.strip() for tag in args.tracker_tags.split(",") if tag.strip()]
    check_tracker_names(args)
    if args.local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    args.script, args.recipe = parser.prog, used_flags(parser, args)


def used_flags(parser: Parser, args: argparse.Namespace) -> tuple[str, ...]:
    """The flags that were passed, or whose value in `args` is not the script's default, as words of a command line.

    Those that were passed at their default count too: a base's recommended settings would replace them.
    """
    words = []
    for action in parser._actions:  # argparse has no public list of them
        name, value = action.dest, getattr(args, action.dest, None)
        used = parser.given.intersection(action.option_strings) or value != parser.get_default(name)
        if name in NOT_KEPT or value is None or not used:
            continue
        flag = f"--{name}" if value is not False else f"--no-{name}"
        words.append(flag if isinstance(value, bool) else f"{flag}={value}")
    return tuple(words)


def settings_of(args: argparse.Namespace) -> Settings:
    """The flags that `parse` has completed, as plain values for the loop."""
    values = vars(args) | {
        "output_dir": Path(args.output_dir),
        "cache_dir": args.cache_dir and Path(args.cache_dir),
        "trackers": tuple(args.trackers),
        "tags": tuple(args.tags),
        "flags": {name: value for name, value in vars(args).items() if name not in NOT_SHOWN},
    }
    return Settings(**{field.name: values[field.name] for field in fields(Settings)})


def _recommend(args: argparse.Namespace, given: Collection[str]) -> None:
    """Replace defaults, the paper's for Stable Diffusion, by those that a small base's folder recommends: numbers, and
    the donor of AugUNet's conv_in by its path relative to that folder.
    """
    file = Path(args.pretrained_model_name_or_path) / RECOMMENDED
    if not file.is_file():
        return
    try:
        content = json_object(file.read_text())
        recommended = {name: RECOMMENDABLE[name](value) for name, value in content.items()}
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        names = ", ".join(RECOMMENDABLE)
        raise InputError(f"{file}: not an object with values for {names} ({type(error).__name__}: {error})") from None
    if "augment_from" in recommended:
        recommended["augment_from"] = os.path.normpath(file.parent / recommended["augment_from"])
    taken = {
        name: value
        for name, value in recommended.items()
        if f"--{name}" not in given and name not in args.refused and hasattr(args, name)
    }
    for name, value in taken.items():
        setattr(args, name, value)
    if taken:
        texts = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in taken.items()}
        words = " ".join(f"--{name} {text}" for name, text in texts.items())
        note(f"{args.pretrained_model_name_or_path} recommends {words}, used where you set none")


def refuse_dead_flags(args: argparse.Namespace) -> None:
    """Flags of the released code that every script refuses."""
    if args.dataset_name is not None:
        raise InputError("--dataset_name: data come from local folders; use --dataset folder or manifest for your own")
    if args.snr_gamma is not None:
        raise InputError(
            "--snr_gamma: neither method weights its loss by SNR; leave it out (plain MSE, as in the paper)"
        )
    if args.enable_xformers_memory_efficient_attention:
        raise InputError(
            "--enable_xformers_memory_efficient_attention: PyTorch's fused attention is built in and always on; "
            "leave the flag out"
        )


def check_data(args: argparse.Namespace, given: Collection[str]) -> None:
    """The flags that each kind of data set needs, and those that it reads."""
    needs, reads = {
        "diode": (("train_data_dir", "pseudo_root"), ("scene_types", "list_from", "mix")),
        "folder": (("train_data_dir",), ("pseudo_root", "val_fraction", "gt_frame", "mix")),
        "manifest": (("manifest",), ("val_fraction", "gt_frame")),
    }[args.dataset]
    hints = {
        "train_data_dir": "DIODE's normals/ or depths/ folder" if args.dataset == "diode" else "with images/, labels/",
        "pseudo_root": "the folder of labels that holds train/ and val/",
        "manifest": "a .jsonl file",
    }
    roots = (args.train_data_dir or "").split(",") if args.mix else [args.train_data_dir or ""]
    if args.dataset == "diode" and (own := [root for root in roots if root and (Path(root) / "images").is_dir()]):
        raise InputError(f"--train_data_dir={own[0]}: holds images/, so it is not a DIODE tree; pass --dataset folder")
    for name in needs:
        if not getattr(args, name):
            raise InputError(f"--{name} is missing: pass {hints[name]}")
    for name in ("train_data_dir", "pseudo_root", "manifest", *SOME_READ):
        if f"--{name}" in given and name not in needs + reads:
            raise InputError(f"--{name} means nothing for --dataset {args.dataset}; leave it out")
    if args.crop == "none" and (flag := next((f for f in ("--center_crop", "--no-center_crop") if f in given), None)):
        raise InputError(f"{flag} means nothing for --crop none; leave one of them out")
    if not 0 <= args.val_fraction < 1:
        raise InputError(f"--val_fraction={args.val_fraction}: must be at least 0 and less than 1")


class Folder(NamedTuple):
    """One folder of training data: of --train_data_dir and, for its labels, of --pseudo_root.

    name: what tells it from the other folders of --mix, and its share of every step; "" and 1 without.
    """

    root: Path
    labels: Path | None
    name: str
    share: Fraction


def folders_of(args: argparse.Namespace) -> list[Folder]:
    """The folders of a DIODE tree's or an own folder's --train_data_dir: one or, with --mix, several.

    Raises InputError where their numbers, or the shares, are not as they must be.
    """
    if args.mix is None:
        return [Folder(Path(args.train_data_dir), args.pseudo_root and Path(args.pseudo_root), "", Fraction(1))]
    shares = shares_of(args.mix)
    lists = {name: (getattr(args, name) or "").split(",") for name in ("train_data_dir", "pseudo_root")}
    for name, items in lists.items():
        if getattr(args, name) and len(items) != len(shares):
            raise InputError(
                f"--{name}={getattr(args, name)}: {len(items)} folders for the {len(shares)} shares of "
                f"--mix={args.mix}; separate as many by commas (link a folder whose name has one)"
            )
    roots = [Path(expand(text.strip())) for text in lists["train_data_dir"]]
    labels = [Path(expand(text.strip())) for text in lists["pseudo_root"]] if args.pseudo_root else [None] * len(roots)
    places = [os.path.realpath(root) for root in roots]
    if twice := [root for root, place in zip(roots, places) if places.count(place) > 1]:
        raise InputError(f"--train_data_dir={args.train_data_dir}: {twice[0]} is there twice; name every folder once")
    return [Folder(*one) for one in zip(roots, labels, short_names(roots), shares, strict=True)]


def shares_of(mix: str) -> list[Fraction]:
    """--mix -> its shares, exactly. InputError unless they are several positive decimals that add up to 1."""
    texts = [text.strip() for text in mix.split(",")]
    for text in texts:
        if not re.fullmatch(rf"0?\.\d{{1,{DECIMALS}}}", text) or not float(text):
            raise InputError(
                f"--mix={mix}: {text!r} is not a share; pass decimals between 0 and 1 of at most {DECIMALS} places, "
                "as in 0.9,0.1"
            )
    shares = [Fraction(text) for text in texts]
    if sum(shares) != 1:
        raise InputError(f"--mix={mix}: the shares add up to {float(sum(shares)):g}; they must add up to 1")
    return shares


def short_names(roots: list[Path]) -> list[str]:
    """The folders' names without what they have in common: a/hypersim/albedo, a/vkitti2/albedo: hypersim, vkitti2."""

    def common(lists: Sequence[Sequence[str]]) -> int:
        return sum(1 for _ in takewhile(lambda items: len(set(items)) == 1, zip(*lists)))

    parts = [root.absolute().parts for root in roots]
    first = common(parts)
    last = common([part[first:][::-1] for part in parts])
    names = ["_".join(part[first : len(part) - last]) or part[-1] for part in parts]
    names = [re.sub(r"[^\w.-]", "_", name) for name in names]  # they become names of files and metrics
    return names if len(set(names)) == len(names) else [f"{i}_{name}" for i, name in enumerate(names, 1)]


def check_folders(args: argparse.Namespace) -> None:
    """InputError where the data's folders are not there: PyTorch would take seconds to import first."""
    if args.dataset == "manifest":
        return
    parts = args.train_data_dir.split(",")
    if args.mix is None and not os.path.isdir(args.train_data_dir) and all(map(os.path.isdir, parts)):
        raise InputError(
            f"--train_data_dir={args.train_data_dir}: {len(parts)} folders; pass --mix with the share of each, as in "
            f"--mix={','.join(['0.9', '0.1'] if len(parts) == 2 else ['...'] * len(parts))}"
        )
    for folder in folders_of(args):
        if args.dataset == "diode" and folder.labels:
            check_trees(folder.root, folder.labels)
        else:
            check_own_folders(folder.root, folder.labels)


def check_numbers(args: argparse.Namespace) -> None:
    """Ranges of the numeric flags that this script has."""
    numbers = {name: value for name, value in vars(args).items() if isinstance(value, (int, float))}
    for name, value in numbers.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name}={value}: must be a finite number")
    for name in [name for name in POSITIVE if numbers.get(name, 1) <= 0]:
        raise InputError(f"--{name}={numbers[name]}: must be more than 0")
    for name in [name for name in NOT_NEGATIVE if numbers.get(name, 0) < 0]:
        raise InputError(f"--{name}={numbers[name]}: must not be negative")
    for name in [name for name in ("adam_beta1", "adam_beta2", "ema_decay") if not 0 <= numbers[name] < 1]:
        raise InputError(f"--{name}={numbers[name]}: must be at least 0 and less than 1")
    for name, limit in LIMITS.items():
        if numbers.get(name, 0) > limit:
            raise InputError(f"--{name}={numbers[name]}: must be at most {limit}")
    if args.best_metric is not None and not args.validation_steps:
        raise InputError(f"--best_metric={args.best_metric}: --validation_steps 0 validates nothing; leave one out")


def check_resolution(args: argparse.Namespace) -> None:
    """The resolution is a multiple of the VAE's reduction and, for whole images, of the UNet's."""
    if args.resolution % 8:
        raise InputError(f"--resolution={args.resolution}: must be a multiple of 8, the VAE's reduction")
    if args.crop == "none" and args.resolution >= 256 and args.resolution % 64:
        raise InputError(f"--resolution={args.resolution}: from 256 on, --crop none needs a multiple of 64")


def check_tracker_names(args: argparse.Namespace) -> None:
    """wandb refuses the same names, but only after the model has been loaded."""
    for flag, text in (("tracker_project", args.tracker_project), ("run_name", args.run_name)):
        if text is not None and not 0 < len(text.strip()) <= 128:
            raise InputError(f"--{flag}={text!r}: a name has 1 to 128 characters")
    if set(args.tracker_project) & set("/\\#?%:"):
        raise InputError(f"--tracker_project={args.tracker_project}: a project's name has none of / \\ # ? % :")
    if any(len(tag) > 64 for tag in args.tags):
        raise InputError(f"--tracker_tags={args.tracker_tags}: a tag has at most 64 characters")


def trackers_of(report_to: str) -> list[str]:
    """--report_to -> a list out of TRACKERS."""
    names = [name.strip() for name in report_to.split(",") if name.strip()]
    if names in ([], ["none"]):
        return []
    if names == ["all"]:
        return list(TRACKERS)
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise InputError(f"--report_to={report_to}: {unknown[0]!r} is not one of {', '.join(TRACKERS)}, all, none")
    return list(dict.fromkeys(names))
