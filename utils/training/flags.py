"""The training scripts' flags, group by group. `group`: an argparse group, or a parser."""

import argparse
from typing import Any

from utils.cli import Parser, expand, number
from utils.intrinsics import DEPTH_CODINGS
from utils.kinds.frames import FRAMES


def needed_flags(group: Any) -> None:
    """The flags that a run needs."""
    add = group.add_argument
    add("--pretrained_model_name_or_path", type=expand, required=True, help="Stable Diffusion 1.x to "
        "3.5 or XL, FLUX.2-klein, Z-Image, Qwen-Image: a local folder or hub name; of SD 1.x and 2.x also one "
        ".safetensors or .ckpt file")  # fmt: skip
    add("--train_data_dir", type=expand, help="DIODE's normals/ or depths/ folder (diode_meta.json is in its "
        "parent); with --dataset folder: your own, with images/ and labels/, optional gt/ and masks/; with --mix: "
        "several, separated by commas")  # fmt: skip
    add("--pseudo_root", type=expand, help="pseudo labels: <split>/<scene type>/<scene>/<scan>/<stem>.png, 8-bit; "
        "with --dataset folder: only if they are not in its labels/; with --mix: one for each folder")  # fmt: skip
    add("--output_dir", type=expand, default="sd-model-finetuned-lora", help="LoRA, checkpoints, metrics.jsonl and "
        "validation/")  # fmt: skip


def model_flags(group: Any) -> None:
    """Base, LoRA and method."""
    add = group.add_argument
    add("--revision", help="branch, tag or commit of the hub model")
    add("--base_precision", choices=["int8", "nf4"], help="8 or 4 bits for the frozen network's linear layers: less "
        "memory, slower; they compute in --mixed_precision's dtype (default: kept in it)")  # fmt: skip
    add("--rank", type=int, default=8, help="rank of the LoRA; the released code's default is 4, its commands use 8 "
        "(default: 8)")  # fmt: skip
    add("--lora_targets", default="attention", help="layers with a LoRA: attention (as in the paper), all, or "
        "a comma-separated choice of attention,feedforward,projection,conv,time; of transformers also "
        "modulation")  # fmt: skip
    add("--lora_path", type=expand, help="start from this LoRA (.safetensors, .bin or an output folder)")
    add("--unified_prompt", help="the one prompt of every image")
    add("--empty_prompt", action="store_true", help="an empty prompt instead of --unified_prompt")
    add("--timestep", type=number, metavar="N", help="noise level that the single step conditions the network on; of "
        "flow models a time from 0 to 1. A base that predicts noise may be more accurate at another one than the "
        "paper's (default: the schedule's last, 999; 0.4 of flow models)")  # fmt: skip
    add("--noise_offset", type=float, default=0.0, help="scale of a per-channel offset of the noise")
    add("--prediction_type", help="what the UNet predicts")
    add("--snr_gamma", type=float)
    add("--enable_xformers_memory_efficient_attention", action="store_true")


def data_flags(group: Any) -> None:
    """Images and labels, and their crops."""
    add = group.add_argument
    add("--dataset", choices=["diode", "folder", "manifest"], default="diode", help="diode: its own tree and one of "
        "labels; folder: images/ and labels/ with the same names; manifest: a JSON object a line")  # fmt: skip
    add("--manifest", type=expand, help='lines of {"image": ..., "label": ...}, optional gt, mask, split, name')
    add("--mix", help="shares of the folders in --train_data_dir in every step, such as 0.9,0.1; --num_train_imgs and "
        "--max_train_samples then count for each folder, an epoch is as many samples as all of them have")  # fmt: skip
    add("--val_fraction", type=float, default=0.1, help="folder, manifest: share held out for validation, drawn by "
        "--seed, unless images/ holds train/ and val/ or the manifest has splits")  # fmt: skip
    add("--gt_frame", choices=list(FRAMES), default="opencv", help="folder, manifest: axes of the normals in gt/")
    add("--scene_types", default="outdoor,indoors", help="DIODE: 'indoors', 'outdoor' or 'outdoor,indoors'")
    add("--num_train_imgs", type=int, help="train on this many images, drawn by --seed (default: all of them)")
    add("--max_train_samples", type=int, help="for debugging: keep only the first N training images")
    add("--skip_missing", action="store_true", help="leave out samples without label or ground truth, and count them")
    add("--skip_label_check", action="store_true", help="do not compare 16 labels with the ground truth first, for "
        "axes, channel order, polarity and coding")  # fmt: skip
    add("--list_from", choices=["meta", "disk"], default="meta", help="DIODE: the samples that diode_meta.json lists "
        "or those on disk (val: 612 or 771)")  # fmt: skip
    add("--resolution", type=int, default=512, help="side of the square crops, in pixels; a multiple of 8")
    add("--center_crop", action=argparse.BooleanOptionalAction, default=True, help="crop the centre, as the released "
        "code always did (the default); --no-center_crop: at random, the same for image, label and truth")  # fmt: skip
    add("--crop", choices=["square", "none"], default="square", help="square: see --center_crop; none: whole "
        "images, --resolution being their short side, in batches of one shape")  # fmt: skip
    add("--masked_loss", action="store_true", help="pixels without ground truth, or outside masks/ of your own "
        "data, do not count: a latent cell counts if all of its pixels are valid (default: all count, as in the "
        "paper)")  # fmt: skip
    add("--no_cache_latents", action="store_true", help="encode the images in every step instead of once")
    add("--cache_dir", type=expand, help="folder of the cached latents, to share between runs (default: "
        "latent_cache/ in --output_dir)")  # fmt: skip
    add("--dataloader_num_workers", type=int, default=0, help="processes that load data; 0: the main one. "
        "As many threads read the images of the latent cache (default there: one per core, at most 8)")  # fmt: skip
    add("--dataset_name")


def optimisation_flags(group: Any) -> None:
    """Length, learning rate, optimiser, precision."""
    add = group.add_argument
    add("--train_batch_size", type=int, default=4, help="images per process and micro-step")
    add("--gradient_accumulation_steps", type=int, default=1, help="micro-steps per optimiser step")
    add("--max_train_steps", type=int, help="optimiser steps; wins over --num_train_epochs")
    add("--num_train_epochs", type=int, help="passes over the data, where --max_train_steps is not given")
    add("--learning_rate", type=float, default=1e-4, help="AdamW's step size after warm-up")
    add("--scale_lr", action="store_true", help="multiply it by batch size, accumulation and number of processes")
    add("--lr_scheduler", default="constant", choices=["linear", "cosine", "cosine_with_restarts", "polynomial",
        "constant", "constant_with_warmup"], metavar="NAME", help="schedule of the learning rate: linear, cosine, "
        "cosine_with_restarts, polynomial, constant, constant_with_warmup")  # fmt: skip
    add("--lr_warmup_steps", type=int, default=0, help="steps over which the learning rate rises from 0")
    add("--adam_beta1", type=float, default=0.9, help="AdamW's decay of the first moment")
    add("--adam_beta2", type=float, default=0.999, help="AdamW's decay of the second moment")
    add("--adam_weight_decay", type=float, default=1e-2, help="AdamW's decoupled weight decay")
    add("--adam_epsilon", type=float, default=1e-8, help="AdamW's epsilon")
    add("--use_8bit_adam", action="store_true", help="AdamW with 8-bit state (needs bitsandbytes and CUDA)")
    add("--max_grad_norm", type=float, default=1.0, help="clip the LoRA's gradient to this norm; 0: never, which is "
        "what the published weights were trained with")  # fmt: skip
    add("--ema_decay", type=float, default=0.0, help="decay of moving averages of the LoRA's weights, such as "
        "0.98, which are then validated and written; helps where the learning rate stays high; 0: none")  # fmt: skip
    add("--gradient_checkpointing", action="store_true", help="recompute activations: less memory, slower")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="dtype of the frozen parts and of autocast; the "
        "LoRA's weights, optimiser and loss stay fp32 (default: accelerate's setting)")  # fmt: skip
    add("--compile", action="store_true", help="torch.compile the UNet: faster steps after a first one that takes a "
        "minute or so (needs a C++ compiler, on a GPU Triton)")  # fmt: skip
    add("--allow_tf32", action="store_true", help="TF32 for matrix products in fp32, on Ampere GPUs and "
        "newer; convolutions in fp32 use TF32 anyway, PyTorch's default; no effect on bf16 and fp16")  # fmt: skip


def run_flags(group: Any) -> None:
    """Seed, checkpoints, validation."""
    add = group.add_argument
    add(
        "--seed",
        type=int,
        default=1234,
        help="seed of the LoRA's initial weights, the order of the data and all noise",
    )
    add("--checkpointing_steps", type=int, default=2500, help="write checkpoint-<step> every N steps")
    add("--checkpoints_total_limit", type=int, help="keep only the N newest checkpoints, and the best one")
    add("--resume_from_checkpoint", type=expand, help="'latest', or a checkpoint folder")
    add("--force_resume", action="store_true", help="resume although task, data, base model, ... differ from the "
        "checkpoint's")  # fmt: skip
    add("--max_nonfinite", type=int, default=10, help="stop after N consecutive updates whose loss or gradient is "
        "NaN or infinite; such updates are skipped")  # fmt: skip
    add("--validation_steps", type=int, default=2500, help="validate every N steps (and before the first one "
        "and at the end); 0: never")  # fmt: skip
    add("--no_first_validation", action="store_true", help="do not validate before the first step")
    add("--best_metric", help="validation scalar that chooses the best checkpoint, which is named in best.json and "
        "never pruned, such as val/outdoor/median (default: the task's first one on indoors)")  # fmt: skip
    add("--max_hours", type=float, help="stop after X hours with a checkpoint (the released code: always 3.9)")
    add("--local_rank", type=int, default=-1, help="set by old launchers; the environment's LOCAL_RANK wins")


def tracking_flags(group: Any) -> None:
    """Trackers and the hub."""
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


def depth_coding_flag(parser: Parser) -> None:
    """The flag of the depth scripts."""
    parser.add_argument("--depth_coding", choices=list(DEPTH_CODINGS), default="linear", help="depth coding of the "
        "labels, as given to pseudo_label.py; predictions are linear in any case")  # fmt: skip


def augment_from_flag(parser: Parser) -> None:
    """The flag of the AugUNet scripts."""
    parser.add_argument("--augment_from", default="timbrooks/instruct-pix2pix", help="InstructPix2Pix, whose conv_in "
        "reads the image: a local folder or a hub name")  # fmt: skip


def state_meanings(parser: Parser) -> None:
    """The flags of `run_flags` and `tracking_flags` that are read only together with others."""
    parser.only("force_resume", lambda a: a.resume_from_checkpoint, "without --resume_from_checkpoint")
    parser.only("no_first_validation", lambda a: a.validation_steps, "with --validation_steps 0")
    parser.only("tracker_project", lambda a: _reports(a), "with --report_to none")
    parser.only("run_name tracker_tags", lambda a: _reports(a, "wandb"), "without wandb in --report_to")
    parser.only(
        "logging_dir", lambda a: _reports(a, "tensorboard"), "without tensorboard in --report_to", refuse=False
    )
    parser.only("hub_model_id hub_token", lambda a: a.push_to_hub, "without --push_to_hub", refuse=False)
    warm = "with --lr_scheduler constant (constant_with_warmup has a warm-up)"
    parser.only("lr_warmup_steps", lambda a: a.lr_scheduler != "constant", warm, refuse=False)


def _reports(args: argparse.Namespace, tracker: str | None = None) -> bool:
    names = {name.strip() for name in args.report_to.split(",")}
    return "all" in names or (tracker in names if tracker else bool(names - {"none", ""}))
