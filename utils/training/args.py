"""The training scripts' shared flags: the released names, in four groups, every one of them read or refused.

A script takes `training_parser(__doc__)`, replaces defaults with `set_defaults(...)` where the paper's recipe differs,
and calls `parse`. Flags of the released code that did nothing there either work here or are refused with a reason.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from utils.cli import Parser, expand
from utils.errors import InputError, note
from utils.hub.names import check_base
from utils.lora.targets import parse_targets
from utils.maps.frames import FRAMES
from utils.tracking.settings import TrackingSettings
from utils.training.settings import OptimizerSettings, RunSettings, Settings

TRACKERS = ("wandb", "tensorboard")
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
    _needed_flags(parser.add_argument_group("what must be given"))
    _model_flags(parser.add_argument_group("model and LoRA"))
    _data_flags(parser.add_argument_group("data"))
    _optimisation_flags(parser.add_argument_group("optimisation"))
    _run_flags(parser.add_argument_group("run"))
    _tracking_flags(parser.add_argument_group("trackers and hub"))
    parser.set_defaults(refused=dict(refused))
    for action in parser._actions:  # argparse has no public way to hide a flag after it was added
        if action.dest in (*refused, *DEAD):
            action.help = argparse.SUPPRESS
    return parser


def _needed_flags(group) -> None:
    add = group.add_argument
    add("--pretrained_model_name_or_path", type=expand, required=True, help="Stable Diffusion: a local folder, a "
        "hub name, or one .safetensors or .ckpt file of SD 1.x or 2.x")  # fmt: skip
    add("--train_data_dir", type=expand, help="DIODE's normals/ or depths/ folder (diode_meta.json lies in its "
        "parent); with --dataset folder: your own, with images/ and labels/, optional gt/ and masks/")  # fmt: skip
    add("--pseudo_root", type=expand, help="pseudo labels: <split>/<scene type>/<scene>/<scan>/<stem>.png, 8-bit; "
        "with --dataset folder: only if they are not in its labels/")  # fmt: skip
    add("--output_dir", type=expand, default="sd-model-finetuned-lora", help="LoRA, checkpoints, metrics.jsonl and "
        "validation/")  # fmt: skip


def _model_flags(group) -> None:
    add = group.add_argument
    add("--revision", help="branch, tag or commit of the hub model")
    add("--rank", type=int, default=8, help="rank of the LoRA; the released code's default is 4, its commands use 8 "
        "(default: 8)")  # fmt: skip
    add("--lora_targets", default="attention", help="layers the LoRA sits on: attention (the paper's place), all, "
        "or a comma-separated choice of attention,feedforward,projection,conv,time")  # fmt: skip
    add("--lora_path", type=expand, help="start from this LoRA (.safetensors, .bin or an output folder)")
    add("--unified_prompt", help="the one prompt of every image")
    add("--empty_prompt", action="store_true", help="an empty prompt instead of --unified_prompt")
    add("--timestep", type=int, help="of the single step: the noise level the UNet is conditioned on. A base that "
        "predicts noise may know more at another than the paper's (default: the schedule's last, 999)")  # fmt: skip
    add("--noise_offset", type=float, default=0.0, help="scale of a per-channel offset of the noise")
    add("--prediction_type", help="what the UNet predicts")
    add("--snr_gamma", type=float)
    add("--enable_xformers_memory_efficient_attention", action="store_true")


def _data_flags(group) -> None:
    add = group.add_argument
    add("--dataset", choices=["diode", "folder", "manifest"], default="diode", help="diode: its own tree and one of "
        "labels; folder: images/ and labels/ with the same names; manifest: a JSON object a line")  # fmt: skip
    add("--manifest", type=expand, help='lines of {"image": ..., "label": ...}, optional gt, mask, split, name')
    add("--val_fraction", type=float, default=0.1, help="folder, manifest: share held out for validation, drawn by "
        "--seed, unless images/ holds train/ and val/ or the manifest has splits")  # fmt: skip
    add("--gt_frame", choices=list(FRAMES), default="opencv", help="folder, manifest: axes of the normals in gt/")
    add("--scene_types", default="outdoor,indoors", help="DIODE: 'indoors', 'outdoor' or 'outdoor,indoors'")
    add("--num_train_imgs", type=int, help="train on this many images, drawn by --seed (default: all of them)")
    add("--max_train_samples", type=int, help="for debugging: keep only the first so many of the training images")
    add("--skip_missing", action="store_true", help="leave out samples without label or ground truth, and count them")
    add("--list_from", choices=["meta", "disk"], default="meta", help="DIODE: the samples that diode_meta.json lists "
        "or those on disk (val: 612 or 771)")  # fmt: skip
    add("--resolution", type=int, default=512, help="side of the square crops, in pixels; a multiple of 8")
    add("--center_crop", action=argparse.BooleanOptionalAction, default=True, help="crop the centre, as the released "
        "code always did (the default); --no-center_crop: at random, alike for image, label and truth")  # fmt: skip
    add("--crop", choices=["square", "none"], default="square", help="square: as --center_crop says; none: whole "
        "pictures, --resolution being their short side, in batches of one shape")  # fmt: skip
    add("--masked_loss", action="store_true", help="pixels without ground truth, or outside masks/ of your own "
        "data, do not count: a latent cell counts if all of its pixels are valid (default: all count, as in the "
        "paper)")  # fmt: skip
    add("--no_cache_latents", action="store_true", help="encode the images anew in every step, instead of once")
    add("--cache_dir", type=expand, help="folder of the cached latents, to share between runs (default: "
        "latent_cache/ in --output_dir)")  # fmt: skip
    add("--dataloader_num_workers", type=int, default=0, help="processes that load data; 0: the main one")
    add("--dataset_name")


def _optimisation_flags(group) -> None:
    add = group.add_argument
    add("--train_batch_size", type=int, default=4, help="images per process and micro-step")
    add("--gradient_accumulation_steps", type=int, default=1, help="micro-steps per optimiser step")
    add("--max_train_steps", type=int, help="optimiser steps; wins over --num_train_epochs")
    add("--num_train_epochs", type=int, help="passes over the data, where --max_train_steps is not given")
    add("--learning_rate", type=float, default=1e-4, help="AdamW's step size after warm-up")
    add("--scale_lr", action="store_true", help="multiply it by batch size, accumulation and number of processes")
    add("--lr_scheduler", default="constant", choices=["linear", "cosine", "cosine_with_restarts", "polynomial",
        "constant", "constant_with_warmup"], metavar="NAME", help="course of the learning rate: linear, cosine, "
        "cosine_with_restarts, polynomial, constant, constant_with_warmup")  # fmt: skip
    add("--lr_warmup_steps", type=int, default=0, help="steps over which it rises from 0")
    add("--adam_beta1", type=float, default=0.9, help="AdamW's decay of the first moment")
    add("--adam_beta2", type=float, default=0.999, help="AdamW's decay of the second moment")
    add("--adam_weight_decay", type=float, default=1e-2, help="AdamW's decoupled weight decay")
    add("--adam_epsilon", type=float, default=1e-8, help="AdamW's epsilon")
    add("--use_8bit_adam", action="store_true", help="AdamW with 8-bit state (needs bitsandbytes and CUDA)")
    add("--max_grad_norm", type=float, default=1.0, help="clip the LoRA's gradient to this norm; 0: never, which is "
        "what the published weights were trained with")  # fmt: skip
    add("--gradient_checkpointing", action="store_true", help="recompute activations: less memory, slower")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="dtype of the frozen parts and of autocast; the "
        "LoRA's weights, optimiser and loss stay fp32 (default: accelerate's setting)")  # fmt: skip
    add("--compile", action="store_true", help="torch.compile the UNet: faster steps after a first one that takes a "
        "minute or so (needs a C++ compiler, on a GPU Triton)")  # fmt: skip
    add("--allow_tf32", action="store_true", help="TF32 matrix products on Ampere GPUs and newer")


def _run_flags(group) -> None:
    add = group.add_argument
    add("--seed", type=int, default=1234, help="of the LoRA's start, the order of the data and all noise")
    add("--checkpointing_steps", type=int, default=2500, help="write checkpoint-<step> every so many steps")
    add("--checkpoints_total_limit", type=int, help="keep only the newest so many checkpoints, and the best one")
    add("--resume_from_checkpoint", type=expand, help="'latest', or a checkpoint folder")
    add("--force_resume", action="store_true", help="resume although task, data, base model, ... differ from the "
        "checkpoint's")  # fmt: skip
    add("--max_nonfinite", type=int, default=10, help="stop after so many updates in a row whose loss or gradient is "
        "NaN or infinite; such updates are skipped")  # fmt: skip
    add("--validation_steps", type=int, default=2500, help="validate every so many steps (and before the first one "
        "and at the end); 0: never")  # fmt: skip
    add("--no_first_validation", action="store_true", help="do not validate before the first step")
    add("--best_metric", help="validation scalar that chooses the best checkpoint, which is named in best.json and "
        "never pruned, such as val/outdoor/median (default: the task's first one on indoors)")  # fmt: skip
    add("--max_hours", type=float, help="stop after so many hours with a checkpoint (the released code: always 3.9)")
    add("--local_rank", type=int, default=-1, help="set by old launchers; the environment's LOCAL_RANK goes first")


def _tracking_flags(group) -> None:
    add = group.add_argument
    add("--report_to", default="wandb", help="wandb, tensorboard, a comma-separated list, all, or none")
    add("--tracker_project", default="intrinsic-lora", help="project in wandb, and folder inside --logging_dir")
    add("--run_name", help="the run's name in wandb (default: --output_dir's name)")
    add("--tracker_tags", default="", help="comma-separated tags of the run in wandb")
    add("--logging_dir", default="logs", help="TensorBoard's folder inside --output_dir")
    add("--push_to_hub", action="store_true", help="upload the LoRA, a model card and validation panels, at every "
        "checkpoint and at the end")  # fmt: skip
    add("--hub_model_id", help="repository to upload to (default: --output_dir's name)")
    add("--hub_token", help="token for it (default: the one that `hf auth login` stored)")


def parse(parser: Parser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags before anything is loaded.

    Where the base is a folder with recommended settings (RECOMMENDED), they replace defaults, with a note. Adds
    `args.prompt`, the string the text encoder gets, and `args.trackers`, a list out of wandb and tensorboard.
    Raises InputError for a flag that cannot work, with the reason and the replacement.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    given = {word.split("=")[0] for word in argv if word.startswith("--")}
    _refuse_dead_flags(args)
    _recommend(args, given)
    _check_data(args, given)
    for name, reason in vars(args).pop("refused").items():
        if getattr(args, name) != parser.get_default(name):
            raise InputError(f"--{name}={getattr(args, name)}: {reason}")
    _check_numbers(args)
    if args.empty_prompt and "--unified_prompt" in given:
        raise InputError("--empty_prompt and --unified_prompt exclude each other: leave one out")
    if not args.empty_prompt and args.unified_prompt is None:
        raise InputError("no prompt: pass --unified_prompt='...' or --empty_prompt")
    args.prompt = "" if args.empty_prompt else args.unified_prompt
    if "--num_train_epochs" in given and "--max_train_steps" not in given:
        args.max_train_steps = None  # the script's default number of steps must not win over epochs asked for
    if args.max_train_steps is None and args.num_train_epochs is None:
        raise InputError("no length: pass --max_train_steps or --num_train_epochs")
    args.lora_targets = ",".join(parse_targets(args.lora_targets))
    args.trackers = _trackers(args.report_to)
    if not args.output_dir.strip():
        raise InputError("--output_dir is empty: name a folder")
    if Path(args.logging_dir).is_absolute() or ".." in Path(args.logging_dir).parts:
        raise InputError(f"--logging_dir={args.logging_dir}: must lie inside --output_dir, as in: logs")
    args.tags = [tag.strip() for tag in args.tracker_tags.split(",") if tag.strip()]
    _check_tracker_names(args)
    check_base(args.pretrained_model_name_or_path, args.revision)
    if args.local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def settings_of(args: argparse.Namespace) -> Settings:
    """The parsed flags as plain values for the loop. The flags of data and model stay with the script."""

    def pick(kind: type) -> dict[str, Any]:  # argparse checks its values at run time: they have no static type
        return {field.name: getattr(args, field.name) for field in fields(kind) if hasattr(args, field.name)}

    run = pick(RunSettings) | {
        "output_dir": Path(args.output_dir),
        "cache_dir": args.cache_dir and Path(args.cache_dir),
    }
    flags = {name: value for name, value in vars(args).items() if name != "hub_token"}
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


def _refuse_dead_flags(args: argparse.Namespace) -> None:
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


def _check_data(args: argparse.Namespace, given: set[str]) -> None:
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


def _check_numbers(args: argparse.Namespace) -> None:
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name}={value}: must be a finite number")
    positive = ["rank", "resolution", "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps"]
    positive += ["learning_rate", "max_nonfinite"]
    optional = ["num_train_imgs", "max_train_samples", "max_train_steps", "num_train_epochs"]
    optional += ["checkpoints_total_limit", "max_hours"]
    for name in positive + [name for name in optional if getattr(args, name) is not None]:
        if getattr(args, name) <= 0:
            raise InputError(f"--{name}={getattr(args, name)}: must be more than 0")
    not_negative = ["max_grad_norm", "lr_warmup_steps", "validation_steps", "dataloader_num_workers", "seed"]
    for name in [*not_negative, "adam_weight_decay", "adam_epsilon"]:
        if getattr(args, name) < 0:
            raise InputError(f"--{name}={getattr(args, name)}: must not be negative")
    for name in ["adam_beta1", "adam_beta2"]:
        if not 0 <= getattr(args, name) < 1:
            raise InputError(f"--{name}={getattr(args, name)}: must be at least 0 and less than 1")
    for name, limit in {"seed": 2**32 - 1, "rank": 1280, "dataloader_num_workers": 1024}.items():
        if getattr(args, name) > limit:  # rank: the width of Stable Diffusion's widest attention layer
            raise InputError(f"--{name}={getattr(args, name)}: must be at most {limit}")
    if args.best_metric is not None and not args.validation_steps:
        raise InputError(f"--best_metric={args.best_metric}: --validation_steps 0 validates nothing; leave one out")
    if args.resolution % 8:
        raise InputError(f"--resolution={args.resolution}: must be a multiple of 8, the VAE's reduction")
    if args.crop == "none" and args.resolution >= 256 and args.resolution % 64:
        raise InputError(f"--resolution={args.resolution}: from 256 on, --crop none needs a multiple of 64")


def _check_tracker_names(args: argparse.Namespace) -> None:
    """wandb refuses these names too, but only after the model has been loaded."""
    for flag, text in (("tracker_project", args.tracker_project), ("run_name", args.run_name)):
        if text is not None and not 0 < len(text.strip()) <= 128:
            raise InputError(f"--{flag}={text!r}: a name has 1 to 128 characters")
    if set(args.tracker_project) & set("/\\#?%:"):
        raise InputError(f"--tracker_project={args.tracker_project}: a project's name has none of / \\ # ? % :")
    if any(len(tag) > 64 for tag in args.tags):
        raise InputError(f"--tracker_tags={args.tracker_tags}: a tag has at most 64 characters")


def _trackers(report_to: str) -> list[str]:
    names = [name.strip() for name in report_to.split(",") if name.strip()]
    if names in ([], ["none"]):
        return []
    if names == ["all"]:
        return list(TRACKERS)
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise InputError(f"--report_to={report_to}: {unknown[0]!r} is not one of {', '.join(TRACKERS)}, all, none")
    return list(dict.fromkeys(names))
