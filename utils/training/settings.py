"""The settings of a run, as plain values. Each field has the name of its flag; `--help` says what it means."""

from dataclasses import dataclass
from pathlib import Path

from utils.tracking.settings import TrackingSettings


@dataclass(frozen=True)
class RunSettings:
    """The length of a run, its seed, and what it writes when."""

    output_dir: Path
    seed: int
    rank: int
    lora_targets: str
    prompt: str
    train_batch_size: int
    gradient_accumulation_steps: int
    max_train_steps: int | None
    num_train_epochs: int | None
    max_hours: float | None
    mixed_precision: str | None
    allow_tf32: bool
    gradient_checkpointing: bool
    compile: bool
    dataloader_num_workers: int
    no_cache_latents: bool
    cache_dir: Path | None
    checkpointing_steps: int
    checkpoints_total_limit: int | None
    resume_from_checkpoint: str | None
    force_resume: bool
    validation_steps: int
    no_first_validation: bool
    best_metric: str | None
    max_nonfinite: int
    ema_decay: float
    typed: frozenset[str]  # names of the flags that were passed: what is set outside never wins over these


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate."""

    learning_rate: float
    scale_lr: bool
    lr_scheduler: str
    lr_warmup_steps: int
    adam_beta1: float
    adam_beta2: float
    adam_weight_decay: float
    adam_epsilon: float
    use_8bit_adam: bool
    max_grad_norm: float


@dataclass(frozen=True)
class Settings:
    """All of a run's settings, sorted by who reads them."""

    run: RunSettings
    optimizer: OptimizerSettings
    tracking: TrackingSettings


def validates(run: RunSettings, step: int, max_steps: int) -> bool:
    """Whether the LoRA of this step is validated: every `validation_steps`, and the last; 0: never."""
    if not run.validation_steps or (step == 0 and run.no_first_validation):
        return False
    return step >= max_steps or step % run.validation_steps == 0
