"""A run's settings as plain values, and how each of them behaves on resume. Most fields are named as their flags."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Everything that the training loop reads of the command line. The flags of data and model stay in the script."""

    output_dir: Path  # gets the LoRA, checkpoints, metrics.jsonl and validation/
    typed: frozenset[str]  # names of the flags that were passed: nothing set elsewhere overrides these
    script: str  # name of the script that runs
    recipe: tuple[str, ...]  # its flags that were passed or differ from their defaults, for recipe.txt

    # LoRA
    rank: int  # rank of every layer of the LoRA
    lora_targets: str  # kinds of layers that have a LoRA, separated by commas
    prompt: str  # the text encoder's input, the same for every image
    base_precision: str | None  # int8 or nf4 of the frozen network's linear layers; None: the frozen parts' dtype

    # length
    max_train_steps: int | None  # optimiser steps; None: num_train_epochs
    num_train_epochs: int | None  # passes over the data, if max_train_steps is None
    max_hours: float | None  # stop with a checkpoint after this time

    # one step
    seed: int  # seed of the LoRA's initial weights, the order of the data and all noise
    train_batch_size: int  # images per process and micro-step
    gradient_accumulation_steps: int  # micro-steps per optimiser step
    max_grad_norm: float  # limit of the gradient's norm; 0: no limit
    max_nonfinite: int  # consecutive skipped updates that end the run
    ema_decay: float  # decay of moving averages of the LoRA's weights; 0: without averages

    # optimiser
    learning_rate: float  # AdamW's step size after the warm-up
    scale_lr: bool  # multiply learning_rate by the number of images in a step
    lr_scheduler: str  # diffusers' name of the schedule
    lr_warmup_steps: int  # steps over which the learning rate rises from 0
    adam_beta1: float  # decay of the first moment
    adam_beta2: float  # decay of the second moment
    adam_weight_decay: float  # decoupled weight decay
    adam_epsilon: float  # added to the denominator
    use_8bit_adam: bool  # bitsandbytes' AdamW with 8-bit state

    # computation
    mixed_precision: str | None  # no, fp16 or bf16; None: accelerate's setting
    allow_tf32: bool  # TF32 matrix products
    gradient_checkpointing: bool  # recompute activations to save memory
    compile: bool  # torch.compile the network

    # data
    dataloader_num_workers: int  # processes that load data; 0: the main process
    no_cache_latents: bool  # encode the images in every step
    cache_dir: Path | None  # folder of the latent cache; None: latent_cache/ in output_dir

    # checkpoints and validation
    checkpointing_steps: int  # steps between checkpoints
    checkpoints_total_limit: int | None  # newest checkpoints to keep, besides the best one; None: all
    resume_from_checkpoint: str | None  # "latest" or a checkpoint folder
    force_resume: bool  # resume although settings differ that are EXACT below
    validation_steps: int  # steps between validations; 0: no validation
    no_first_validation: bool  # no validation before the first step
    best_metric: str | None  # validation scalar that chooses the best checkpoint; None: the task's first one

    # trackers and hub
    trackers: tuple[str, ...]  # out of wandb and tensorboard
    tracker_project: str  # project in wandb, folder of TensorBoard's logs
    run_name: str | None  # name in wandb; None: output_dir's name
    tags: tuple[str, ...]  # tags in wandb
    logging_dir: str  # TensorBoard's folder in output_dir
    push_to_hub: bool  # upload every checkpoint and the final LoRA
    hub_model_id: str | None  # repository to upload to; None: output_dir's name
    hub_token: str | None  # token for it; None: the stored one
    flags: Mapping[str, object]  # every flag except the token: the configuration that trackers show


EXACT = "exact"  # a change is refused: it would silently be another experiment; --force_resume turns it into a note
NOTED = "noted"  # a change is noted
NEVER = "never forced"  # a change is refused, also with --force_resume: the weights would not fit
ON_RESUME = {  # a checkpoint contains these settings; those that a run does not have are left out
    # what is trained, on what
    "task": EXACT,
    "method": NEVER,
    "base_model": EXACT,
    "rank": NEVER,
    "prompt": EXACT,
    "base_precision": EXACT,
    "resolution": EXACT,
    "timestep": EXACT,
    "seed": EXACT,
    "lora_targets": NEVER,
    "masked_loss": EXACT,
    "depth_coding": EXACT,
    "crop": EXACT,
    "positions": EXACT,
    "decoding": EXACT,
    "ema_decay": NEVER,
    "images per step": EXACT,
    "training data": EXACT,
    # the optimiser and the length
    "learning_rate": NOTED,
    "scale_lr": NOTED,
    "lr_scheduler": NOTED,
    "lr_warmup_steps": NOTED,
    "max_train_steps": NOTED,
    "num_train_epochs": NOTED,
    "adam_beta1": NOTED,
    "adam_beta2": NOTED,
    "adam_weight_decay": NOTED,
    "adam_epsilon": NOTED,
    "max_grad_norm": NOTED,
    "train_batch_size": NOTED,
    "gradient_accumulation_steps": NOTED,
    # how it is computed, whether set by a flag or elsewhere: the last bits change or, with the precision, more
    "mixed_precision": NOTED,  # EXACT if no flag sets it
    "processes": NOTED,
    "device": NOTED,
    "compile": NOTED,
    "TF32": NOTED,
    "threads": NOTED,
}
BEFORE = {  # values of checkpoints that are older than the setting; a NOTED one that is missing counts as unchanged
    "lora_targets": "attention",
    "base_precision": None,
    "masked_loss": False,
    "depth_coding": "linear",
    "crop": "square",
    "ema_decay": 0.0,
}
