"""Checks of the training scripts' flags, before anything is loaded. Each raises InputError with the cure."""

import argparse
import math

from utils.errors import InputError

TRACKERS = ("wandb", "tensorboard")
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


def check_data(args: argparse.Namespace, given: set[str]) -> None:
    """Each kind of data set needs some flags and reads some."""
    needs, reads = {
        "diode": (("train_data_dir", "pseudo_root"), ("scene_types", "list_from")),
        "folder": (("train_data_dir",), ("pseudo_root", "val_fraction", "gt_frame")),
        "manifest": (("manifest",), ("val_fraction", "gt_frame")),
    }[args.dataset]
    hints = {
        "train_data_dir": "DIODE's normals/ or depths/ folder" if args.dataset == "diode" else "with images/, labels/",
        "pseudo_root": "the folder of labels that holds train/ and val/",
        "manifest": "a .jsonl file",
    }
    for name in needs:
        if not getattr(args, name):
            raise InputError(f"--{name} is missing: pass {hints[name]}")
    for name in ("train_data_dir", "pseudo_root", "manifest", "scene_types", "list_from", "val_fraction", "gt_frame"):
        if f"--{name}" in given and name not in needs + reads:
            raise InputError(f"--{name} means nothing for --dataset {args.dataset}; leave it out")
    if args.crop == "none" and (flag := next((f for f in ("--center_crop", "--no-center_crop") if f in given), None)):
        raise InputError(f"{flag} means nothing for --crop none; leave one of them out")
    if not 0 <= args.val_fraction < 1:
        raise InputError(f"--val_fraction={args.val_fraction}: must be at least 0 and less than 1")


def check_numbers(args: argparse.Namespace) -> None:
    """Ranges of the numbers, of those flags that this script has."""
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
    """A multiple of what the VAE and, of whole pictures, the UNet reduce by."""
    if args.resolution % 8:
        raise InputError(f"--resolution={args.resolution}: must be a multiple of 8, the VAE's reduction")
    if args.crop == "none" and args.resolution >= 256 and args.resolution % 64:
        raise InputError(f"--resolution={args.resolution}: from 256 on, --crop none needs a multiple of 64")


def check_tracker_names(args: argparse.Namespace) -> None:
    """wandb refuses these names too, but only after the model has been loaded."""
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
