"""Checkpoints of a run: `checkpoint-<step>/` with the LoRA and the optimiser's state; find, prune, resume, best one.

All randomness is a function of the seed and the step, so no random state is kept: LoRA, optimiser, schedule
and step are the whole run. A manifest with checksums tells a whole checkpoint from a damaged one
(`utils.system.atomic`). `best.json` names the best checkpoint by one validation scalar of `metrics.jsonl`.
"""

import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from utils.errors import InputError, note, warn
from utils.kinds.base import higher_is_better
from utils.lora import load_attn_procs, save_lora
from utils.system.atomic import damage, is_full, json_object, seal, sync, write_json
from utils.training.settings import BEFORE, EXACT, NEVER, NOTED, ON_RESUME
from utils.training.tracking import BEST, read_metrics

STATE = "training_state.pt"
ASIDE, GONE = ".checkpoint-{}.part", ".checkpoint-{}.gone"  # being written, being deleted
_NAME = re.compile(r"checkpoint-(\d+)")


class Stateful(Protocol):
    """A part of a run with a state: an optimiser, a schedule, a gradient scaler, `Skipped`, `Averages`."""

    def state_dict(self) -> Mapping[str, object]: ...

    def load_state_dict(self, state: Any, /) -> None: ...  # from its own `state_dict`


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


def choose(output_dir: Path, name: str | None) -> Path | None:
    """The checkpoint to resume from: None, the "latest" undamaged one (None if there is none yet), or the one named.

    Raises:
        InputError: the folder is not a checkpoint, or damaged; or `name` is None, but `output_dir` contains a run.
    """
    existing = find(output_dir)
    if name is None:
        if existing:
            raise InputError(
                f"{output_dir} already holds {existing[-1].name}: "
                "pass --resume_from_checkpoint latest to continue, or another --output_dir"
            )
        return None
    if name == "latest":
        return newest(output_dir)
    for folder in (Path(name), output_dir / name):
        if _NAME.fullmatch(folder.name) and folder.is_dir():
            if wrong := damage(folder):
                raise InputError(f"--resume_from_checkpoint={name}: {folder} is damaged: {wrong}")
            return folder
    names = ", ".join(path.name for path in existing) or "none"
    raise InputError(f"--resume_from_checkpoint={name}: no checkpoint there ({output_dir} holds: {names})")


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
    """Write `checkpoint-<step>` to a temporary folder and to the disk, rename it, and only then prune down to `limit`.

    samples: drawn by the run so far. stateful: name -> object with state_dict(). settings: compared with
    those of a resumed run. spare: name of a checkpoint that is never pruned.
    Where the disk refuses it, only this checkpoint is lost: the earlier ones stay, a warning is printed, and None is
    returned.
    """
    final, aside, gone = (output_dir / name.format(step) for name in ("checkpoint-{}", ASIDE, GONE))
    try:
        clear(output_dir)
        save_lora(unet, aside, metadata)
        state = {"step": step, "samples": samples, "settings": dict(settings)}
        torch.save(state | {name: each.state_dict() for name, each in stateful.items()}, aside / STATE)
        seal(aside)
        if final.exists():  # a damaged one
            final.replace(gone)
        aside.replace(final)
        sync(output_dir)
    except (OSError, RuntimeError, InputError) as error:  # torch.save raises RuntimeError where a disk is full
        reason = "no space left on device" if is_full(output_dir, error) else " ".join(str(error).split())[:300]
        shutil.rmtree(aside, ignore_errors=True)
        last = last_good(output_dir)
        warn(f"{final} could not be written ({reason}); continuing without it, the last good one is {last}")
        return None
    for old in find(output_dir)[:-limit] if limit is not None else ():
        if old.name != spare:
            old.replace(output_dir / GONE.format(step_of(old)))  # a kill while deleting must not leave half of it
    clear(output_dir)
    return final


def clear(output_dir: Path) -> None:
    """Remove the half-written and half-deleted checkpoints of a killed run."""
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

    Changed settings are noted or refused as ON_RESUME has it (settings.py). fixed: name -> what to do; of these,
    NOTED ones are refused too.

    Raises:
        InputError: a setting has changed so that this would silently be another experiment; with `force`, a note.
    """
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        saved, place = BEFORE | state["settings"], (state["step"], state["samples"])
    except Exception as error:  # a truncated zip, another pickle, ...: all mean that it cannot be resumed
        raise InputError(f"{folder / STATE}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    changed = {
        name: f"{name} was {saved.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if saved.get(name) != value and not (ON_RESUME.get(name) == NOTED and name not in saved)
    }
    changed |= {name: f"{changed[name]} ({advice})" for name, advice in fixed.items() if name in changed}
    refused = [text for name, text in changed.items() if ON_RESUME.get(name, EXACT) != NOTED or name in fixed]
    never = any(ON_RESUME.get(name) == NEVER for name in changed)
    if refused and (never or not force):
        advice = "" if never else ", or --force_resume if you know that they go together"
        raise InputError(
            f"{folder}: made by another experiment: {'; '.join(refused)}; use another --output_dir{advice}"
        )
    if changed:
        note(f"{folder.name} continues with changes: {'; '.join(changed.values())}")
    load_attn_procs(unet, folder)
    for name, each in stateful.items():
        if name in state:  # a run of another precision has no scaler
            if "param_groups" in state[name]:  # moments from the checkpoint; rate, decay and betas as flagged now
                state[name]["param_groups"] = each.state_dict()["param_groups"]
            each.load_state_dict(state[name])
    return place


def default_metric(scores: Mapping[str, float]) -> str | None:
    """The task's first metric on the first split that was not trained on; on the training images if there is none."""
    names = [name for name in scores if name.startswith("val/")]
    return next((name for name in names if not name.startswith("val/train/")), names[0] if names else None)


def mark_best(output_dir: Path, metric: str | None) -> dict[str, object] | None:
    """Write `best.json` and return it: {"metric", "value", "step", "checkpoint"}; None where no step qualifies yet.

    metric: a validation scalar; None: `default_metric`. A step qualifies if it was validated, to a finite value, and
    its checkpoint is on disk. The first of equals wins.

    Raises:
        InputError: no validation has this metric.
    """
    validations = [line for line in read_metrics(output_dir) if any(name.startswith("val/") for name in line)]
    metric = metric or (default_metric(validations[0]) if validations else None)
    known = sorted({name for line in validations for name in line if name.startswith("val/")})
    if validations and metric not in known:
        raise InputError(f"--best_metric={metric}: no such scalar; there are {', '.join(known) or 'none'}")
    on_disk = {step_of(folder): folder.name for folder in find(output_dir)}
    lines = [line for line in validations if line["step"] in on_disk and _is_finite(line.get(metric))]
    if metric is None or not lines:
        (output_dir / BEST).unlink(missing_ok=True)
        return None
    sign = -1 if higher_is_better(metric.rsplit("/", 1)[-1]) else 1
    line = min(lines, key=lambda line: sign * line[metric])
    record = {"metric": metric, "value": line[metric], "step": line["step"], "checkpoint": on_disk[line["step"]]}
    try:
        write_json(output_dir / BEST, record)
    except OSError as error:  # a full disk is no reason to end a run
        warn(f"{output_dir / BEST} could not be written ({error.strerror})")
        return None
    return record


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)  # metrics.jsonl has null for NaN and infinity


def best_folder(output_dir: Path) -> str | None:
    """Name of the checkpoint that `best.json` names, None if there is none: pruning must spare it."""
    file = output_dir / BEST
    try:
        return str(json_object(file.read_text())["checkpoint"]) if file.is_file() else None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{file}: cannot be read ({error}); remove it: the next validation writes it again") from None
