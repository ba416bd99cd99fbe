"""Checkpoints of a run: `checkpoint-<step>/` with the LoRA and the optimiser's state; find, prune, resume.

All randomness is a function of the seed and the step, so there is no random state to keep: LoRA, optimiser, schedule
and step are the whole run.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from utils.errors import InputError
from utils.lora import load_attn_procs, save_lora

STATE = "training_state.pt"
_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(folder: Path) -> int:
    """ "checkpoint-2500" -> 2500."""
    return int(_NAME.fullmatch(folder.name)[1])


def find(output_dir: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first: by number, so that 9 comes before 10."""
    folders = [
        path for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name) and (path / STATE).is_file()
    ]
    return sorted(folders, key=step_of)


def choose(output_dir: Path, wanted: str | None) -> Path | None:
    """The checkpoint to resume from: None, the "latest" (None if there is none yet), or the folder named.

    Raises:
        InputError: the folder is no checkpoint; or nothing is asked for, but `output_dir` already holds a run.
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
        return existing[-1] if existing else None
    for folder in (Path(wanted), output_dir / wanted):
        if _NAME.fullmatch(folder.name) and (folder / STATE).is_file():
            return folder
    names = ", ".join(path.name for path in existing) or "none"
    raise InputError(f"--resume_from_checkpoint={wanted}: no finished checkpoint there ({output_dir} holds: {names})")


def save(
    output_dir: Path,
    step: int,
    unet: nn.Module,
    stateful: Mapping[str, object],
    settings: Mapping[str, object],
    metadata: Mapping[str, object],
    limit: int | None = None,
    spare: str | None = None,
) -> Path:
    """Write `checkpoint-<step>` aside, rename it into place, and only then prune down to `limit`.

    stateful: name -> object with state_dict(). settings: what a resumed run must share with this one.
    spare: name of a checkpoint that is never pruned.
    """
    final = output_dir / f"checkpoint-{step}"
    aside = output_dir / f".checkpoint-{step}.part"
    shutil.rmtree(aside, ignore_errors=True)
    save_lora(unet, aside, metadata)
    state = {"step": step, "settings": dict(settings), **{name: each.state_dict() for name, each in stateful.items()}}
    torch.save(state, aside / STATE)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    if limit is not None:
        for old in find(output_dir)[:-limit]:
            if old.name != spare:
                shutil.rmtree(old)
    return final


def load(folder: Path, unet: nn.Module, stateful: Mapping[str, object], settings: Mapping[str, object]) -> int:
    """Restore LoRA, optimiser and schedule in place; return the step.

    Raises:
        InputError: the checkpoint's settings differ, so that going on would silently be another experiment.
    """
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated zip, pickle of something else, ...: all mean that it cannot be resumed
        raise InputError(f"{folder / STATE}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    changed = [
        f"{name} was {state['settings'].get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if state["settings"].get(name) != value
    ]
    if changed:
        raise InputError(f"{folder}: made by another experiment: {'; '.join(changed)}; use another --output_dir")
    load_attn_procs(unet, folder)
    for name, each in stateful.items():
        saved = state[name]
        if "param_groups" in saved:  # moments from the checkpoint; learning rate, decay and betas as flagged now
            saved["param_groups"] = each.state_dict()["param_groups"]
        each.load_state_dict(saved)
    return state["step"]
