"""Checkpoints of a run: `checkpoint-<step>/` with the LoRA and the optimiser's state; find, prune, resume.

All randomness is a function of the seed and the step, so there is no random state to keep: LoRA, optimiser, schedule
and step are the whole run. A manifest with checksums tells a whole checkpoint from a damaged one (`durable.py`).
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from utils.errors import InputError, note, warn
from utils.lora import load_attn_procs, save_lora
from utils.system.atomic import damage, seal, sync

STATE = "training_state.pt"
FREE = (  # flags that may change between a run and its resumption; a change is noted
    "learning_rate", "scale_lr", "lr_scheduler", "lr_warmup_steps", "max_train_steps", "num_train_epochs",
    "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm", "train_batch_size",
    "gradient_accumulation_steps",
)  # fmt: skip
CIRCUMSTANCES = ("mixed_precision", "processes", "device", "compile", "TF32", "threads")  # as FREE; see state.py
FITTING = {"method", "rank", "lora_targets", "ema_decay"}  # nothing can force one's weights into another's shapes
OLDER = {
    "lora_targets": "attention",
    "masked_loss": False,
    "depth_coding": "linear",
    "crop": "square",
    "ema_decay": 0.0,
}  # settings that checkpoints before them did not need to say
ASIDE, GONE = ".checkpoint-{}.part", ".checkpoint-{}.gone"  # being written, being deleted
_NAME = re.compile(r"checkpoint-(\d+)")


class Stateful(Protocol):
    """A part of a run that says and takes back its state: an optimiser, a schedule, a gradient scaler, `Skipped`."""

    def state_dict(self) -> Mapping[str, object]: ...

    def load_state_dict(self, state: Any, /) -> None: ...  # what its own `state_dict` gave


def step_of(folder: Path) -> int:
    """ "checkpoint-2500" -> 2500."""
    return int(folder.name.removeprefix("checkpoint-"))


def find(output_dir: Path) -> list[Path]:
    """The finished checkpoints of a run, damaged or not, oldest first: by number, so that 9 comes before 10."""
    folders = [path for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=step_of)


def newest(output_dir: Path) -> Path | None:
    """The newest undamaged checkpoint, each damaged one that is newer being named in a warning; None if there is none.

    Raises:
        InputError: there are checkpoints, and all are damaged: starting over is for the user to decide.
    """
    folders = find(output_dir)
    for folder in reversed(folders):
        wrong = damage(folder)
        if not wrong:
            return folder
        warn(f"{folder} is damaged and skipped: {wrong}")
    if folders:
        raise InputError(f"{output_dir}: all of its {len(folders)} checkpoints are damaged; remove them to start over")
    return None


def last_good(output_dir: Path) -> str:
    """Name of the newest undamaged checkpoint, or "none": for messages."""
    return next((path.name for path in reversed(find(output_dir)) if not damage(path)), "none")


def choose(output_dir: Path, wanted: str | None) -> Path | None:
    """The checkpoint to resume from: None, the "latest" undamaged one (None if there is none yet), or the one named.

    Raises:
        InputError: the folder is no checkpoint, or damaged; or nothing is asked for, but `output_dir` holds a run.
    """
    existing = find(output_dir)
    if wanted is None:
        if existing:
            raise InputError(
                f"{output_dir} already holds {existing[-1].name}: pass --resume_from_checkpoint latest to go on, "
                "or another --output_dir"
            )
        return None
    if wanted == "latest":
        return newest(output_dir)
    for folder in (Path(wanted), output_dir / wanted):
        if _NAME.fullmatch(folder.name) and folder.is_dir():
            if wrong := damage(folder):
                raise InputError(f"--resume_from_checkpoint={wanted}: {folder} is damaged: {wrong}")
            return folder
    names = ", ".join(path.name for path in existing) or "none"
    raise InputError(f"--resume_from_checkpoint={wanted}: no checkpoint there ({output_dir} holds: {names})")


def save(
    output_dir: Path,
    step: int,
    samples: int,
    unet: nn.Module,
    stateful: Mapping[str, Stateful],
    settings: Mapping[str, object],
    metadata: Mapping[str, object],
    limit: int | None = None,
    spare: str | None = None,
) -> Path | None:
    """Write `checkpoint-<step>` aside and durably, rename it into place, and only then prune down to `limit`.

    samples: how many the run has drawn so far. stateful: name -> object with state_dict(). settings: what a resumed
    run is compared with. spare: name of a checkpoint that is never pruned.
    A disk that refuses it costs this one checkpoint: the earlier ones stay, a warning says so, and None is returned.
    """
    final, aside, gone = (output_dir / name.format(step) for name in ("checkpoint-{}", ASIDE, GONE))
    try:
        clear(output_dir)
        save_lora(unet, aside, metadata)
        state = {"step": step, "samples": samples, "settings": dict(settings)}
        torch.save(state | {name: each.state_dict() for name, each in stateful.items()}, aside / STATE)
        seal(aside)
        if final.exists():  # a damaged one
            os.replace(final, gone)
        os.replace(aside, final)
        sync(output_dir)
    except (OSError, RuntimeError, InputError) as error:  # torch.save raises RuntimeError where a disk is full
        shutil.rmtree(aside, ignore_errors=True)
        reason, last = " ".join(str(error).split())[:300], last_good(output_dir)
        warn(f"{final} could not be written ({reason}); going on without it, the last good one is {last}")
        return None
    for old in find(output_dir)[:-limit] if limit is not None else ():
        if old.name != spare:
            os.replace(old, output_dir / GONE.format(step_of(old)))  # a kill while deleting must not leave half
    clear(output_dir)
    return final


def clear(output_dir: Path) -> None:
    """Remove what a killed run left half written or half deleted."""
    for pattern in (ASIDE, GONE):
        for folder in output_dir.glob(pattern.format("*")):
            shutil.rmtree(folder, ignore_errors=True)


def load(
    folder: Path,
    unet: nn.Module,
    stateful: Mapping[str, Stateful],
    settings: Mapping[str, object],
    force: bool = False,
    fixed: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, int]:
    """Restore LoRA, optimiser and schedule in place; return step and samples drawn.

    A changed setting out of FREE or CIRCUMSTANCES is only noted; but not of those in `fixed`: name -> what to do.
    Circumstances that an older checkpoint does not contain count as unchanged.

    Raises:
        InputError: another setting differs, so that going on would silently be another experiment; `force` notes it.
    """
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        saved, place = OLDER | state["settings"], (state["step"], state["samples"])
    except Exception as error:  # truncated zip, pickle of something else, ...: all mean that it cannot be resumed
        raise InputError(f"{folder / STATE}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    changed = {
        name: f"{name} was {saved.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if saved.get(name) != value and not (name in CIRCUMSTANCES and saved.get(name) is None)
    }
    changed |= {name: f"{changed[name]} ({cure})" for name, cure in fixed.items() if name in changed}
    refused = [text for name, text in changed.items() if name not in (*FREE, *CIRCUMSTANCES) or name in fixed]
    if refused and not (force and FITTING.isdisjoint(changed)):
        cure = "" if not FITTING.isdisjoint(changed) else ", or --force_resume if you know that they go together"
        raise InputError(f"{folder}: made by another experiment: {'; '.join(refused)}; use another --output_dir{cure}")
    if changed:
        note(f"{folder.name} goes on with changes: {'; '.join(changed.values())}")
    load_attn_procs(unet, folder)
    for name, each in stateful.items():
        if name in state:  # a scaler is not there where the run had another precision
            if "param_groups" in state[name]:  # moments from the checkpoint; rate, decay and betas as flagged now
                state[name]["param_groups"] = each.state_dict()["param_groups"]
            each.load_state_dict(state[name])
    return place
