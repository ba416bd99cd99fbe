"""Records of a run: `metrics.jsonl`, with every scalar, and the trackers wandb and TensorBoard."""

import json
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import WandBTracker
from PIL import Image

from utils.errors import InputError, note, warn
from utils.system.atomic import json_object, replace
from utils.training.settings import Settings
from utils.training.wandb_run import kept_locally, not_uploaded, token_hidden, wandb_id, wandb_mode

BEST, METRICS = "best.json", "metrics.jsonl"
FLUSH = 0.05  # seconds until logged values are in wandb's file; with its default, 15, a kill would lose them
PANELS = {"train": "training images", "indoors": "test images 1", "outdoor": "test images 2"}  # the released names


def read_metrics(output_dir: Path) -> list[dict]:
    """The lines of `metrics.jsonl`, each with its "step"; one that a kill cut off is skipped."""
    file, lines = output_dir / METRICS, []
    for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else ():
        try:
            record = json_object(line)
        except ValueError:
            continue
        if line.endswith(b"\n") and isinstance(record.get("step"), int):
            lines.append(record)
    return lines


def append(path: Path, line: str) -> None:
    """Append the whole line or, on a full disk, nothing, with a warning: no line may begin within another."""
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            written = file.write(line.encode())
        except OSError as error:
            written, reason = -1, error.strerror
        if written != len(line.encode()):
            file.truncate(size)
            warn(f"{path}: a line could not be written ({reason if written < 0 else 'no space'}): {line.strip()}")


def forget_after(output_dir: Path, step: int, validation_steps: int) -> set[tuple[int, str]]:
    """Drop the lines of `metrics.jsonl` past `step`, which a resumed run writes again.

    Returns the (step, scalar) dropped that wandb has: all but those of a step whose validation was cut off.
    """
    file = output_dir / METRICS
    lines = read_metrics(output_dir)
    if file.is_file():
        kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
        replace(file, lambda part: part.write_text(kept))
    dropped = {(line["step"], name) for line in lines if line["step"] > step for name in line if name != "step"}
    end = max((at for at, _ in dropped), default=step)
    if (
        validation_steps
        and end % validation_steps == 0
        and not any(at == end and name.startswith("val/") for at, name in dropped)
    ):
        return {(at, name) for at, name in dropped if at != end}
    return dropped


def set_aside(output_dir: Path) -> None:
    """Move an earlier run's `metrics.jsonl` out of the way of a run that starts from step 0 in its folder."""
    file = output_dir / METRICS
    if file.exists():
        number = next(number for number in count(1) if not (output_dir / f"metrics-{number}.jsonl").exists())
        file.replace(output_dir / f"metrics-{number}.jsonl")
        note(f"{file} of an earlier run is metrics-{number}.jsonl now")


def is_validated(output_dir: Path, step: int) -> bool:
    """True if `metrics.jsonl` has validation scores of this step."""
    lines = read_metrics(output_dir)
    return any(line["step"] == step and any(name.startswith("val/") for name in line) for line in lines)


def start_trackers(
    accelerator: Accelerator,
    output_dir: Path,
    config: Mapping[str, object],
    settings: Settings,
    resumed_at: int | None = None,
    sent: Collection[tuple[int, str]] = (),
) -> None:
    """Open the trackers that `accelerator` was made with (main process only), and pass them `config`.

    The run's id is kept in `<output_dir>/wandb_id.txt`, so that every start in that folder continues the same curve.
    resumed_at: the step of the checkpoint that this start continues from, -1 where there was none yet. TensorBoard
    forgets what came after it. wandb cannot: it gets only the values that it lacks, also of the steps up to the
    checkpoint. sent: the (step, scalar) that `forget_after` dropped.
    Raises InputError where wandb continues another run than this folder's.
    """
    if not accelerator.is_main_process:
        return
    names = {str(each) for each in accelerator.log_with}
    init: dict[str, dict[str, object]] = {"tensorboard": {} if resumed_at is None else {"purge_step": resumed_at + 1}}
    if "tensorboard" in names:
        order_events(output_dir / settings.logging_dir / settings.tracker_project)
    known_to_wandb = (output_dir / "wandb_id.txt").is_file()
    if "wandb" in names:
        import wandb

        mode, reason = wandb_mode()
        waiting = not_uploaded(output_dir)
        if mode == "online" and waiting and "WANDB_MODE" not in os.environ:
            mode, reason = "offline", f"{len(waiting)} earlier part(s) of this run are not uploaded yet"
        init["wandb"] = {
            "name": settings.run_name or output_dir.resolve().name,
            "tags": list(settings.tags) or None,
            "id": wandb_id(output_dir),
            "resume": "allow",
            "mode": mode,
            "dir": output_dir,
            "settings": wandb.Settings(
                silent=os.environ.get("WANDB_SILENT", "true").lower()
                != "false",  # its own summary of the run is longer than ours
                x_transaction_log_flush_interval=FLUSH,
            ),
        }
        if reason:
            note(f"wandb is offline ({reason}); upload later with: wandb sync {output_dir}/wandb/offline-run-*")
    held = kept_locally(output_dir) if "wandb" in names else None  # before this start's file is there
    with token_hidden():
        accelerator.init_trackers(settings.tracker_project, init_kwargs=init)
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            run, own_id = tracker.run, init["wandb"]["id"]
            if run.id != own_id and init["wandb"]["mode"] != "disabled":
                raise InputError(
                    f"wandb continues run {run.id}, not {own_id} of {output_dir}/wandb_id.txt; unset WANDB_RUN_ID and "
                    "WANDB_SWEEP_ID"
                )
            tracker.run.config.update(dict(config), allow_val_change=True)
            lines = read_metrics(output_dir)
            logged = set(sent) | {(line["step"], name) for line in lines for name in line if name != "step"}
            if not known_to_wandb or resumed_at is None:  # a run that begins, perhaps with other settings
                tracker.sent = set()
            elif init["wandb"]["mode"] == "online":  # what the server has
                tracker.sent = {pair for pair in logged if pair[0] < run.starting_step}
            else:
                tracker.sent = logged if held is None else held
            send_missing(tracker, lines, resumed_at)
        else:
            tracker.writer.add_text("config", _table(config), max(resumed_at or 0, 0))
            tracker.writer.flush()


def order_events(folder: Path) -> None:
    """Rename the event files of earlier starts where the clock has been set back since, so that the next file's name
    comes last. The names begin with the time, and TensorBoard reads them in their order: it would otherwise show the
    steps after a checkpoint twice.
    """
    now, files = int(time.time()), sorted(folder.glob("events.out.tfevents.*"))
    if files and files[-1].name >= f"events.out.tfevents.{now}":
        for back, file in enumerate(reversed(files), 1):
            *_, rest = file.name.split(".", 4)  # host, process id, number
            file.rename(file.with_name(f"events.out.tfevents.{now - back}.{rest}"))


def send_missing(tracker: WandBTracker, lines: Sequence[Mapping[str, Any]], resumed_at: int | None) -> None:
    """Log the lines of `metrics.jsonl` that wandb lost in a kill: those of the steps after its last one."""
    first = max((step for step, _ in tracker.sent), default=-1) + 1
    steps: dict[int, dict[str, float]] = {}
    for line in lines:
        if line["step"] >= first:
            values = {name: math.nan if value is None else value for name, value in line.items() if name != "step"}
            steps.setdefault(line["step"], {}).update(values)
    for step, values in sorted(steps.items()):
        tracker.log(values, step=step, commit=step != resumed_at)  # the last one's validation may still come
        tracker.sent |= {(step, name) for name in values}


def _table(config: Mapping[str, object]) -> str:
    """A Markdown table, one row per value; a dictionary's values under `name.key`."""
    rows = []
    for name, value in config.items():
        parts = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, Mapping) else {name: value}
        rows += [f"| {key} | {str(each).replace('|', chr(92) + '|')} |" for key, each in parts.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def log_scalars(
    accelerator: Accelerator, output_dir: Path, values: Mapping[str, float], step: int, complete: bool
) -> None:
    """Log to every tracker, and as one line of `metrics.jsonl` (main process only; null for NaN and infinity).

    complete: this step gets no more values. wandb keeps a step in memory until then, and a killed run loses it.
    """
    if accelerator.is_main_process:
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        append(output_dir / METRICS, json.dumps({"step": step, **plain}) + "\n")
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            new = {name: value for name, value in values.items() if (step, name) not in tracker.sent}
            if new:
                tracker.log(new, step=step, commit=complete)
        else:
            tracker.log(values, step=step)


def log_panels(accelerator: Accelerator, panels: Mapping[str, list[tuple[str, Image.Image]]], step: int) -> None:
    """Log to every tracker, under the released names, each image captioned with its stem.

    Completes the step (see `log_scalars`).
    """
    named = {f"validation: {PANELS.get(split, split)}": rows for split, rows in panels.items()}
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            import wandb  # slow, and only needed here

            logged = {name: [wandb.Image(image, caption=stem) for stem, image in rows] for name, rows in named.items()}
            if not any(at == step and name.startswith("val/") for at, name in tracker.sent):
                tracker.log(logged, step=step, commit=True)
        else:
            for name, rows in named.items():
                for stem, image in rows:
                    tracker.writer.add_image(f"{name}/{stem}", np.asarray(image), step, dataformats="HWC")
            tracker.writer.flush()


def log_best(accelerator: Accelerator, best: Mapping[str, object] | None, step: int) -> None:
    """Log the result of `checkpoint.mark_best`: in wandb's summary as `best/...`, in TensorBoard as text."""
    if not best:
        return
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            tracker.run.summary.update({f"best/{key}": value for key, value in best.items()})
        else:
            tracker.writer.add_text("best", _table(best), step)
            tracker.writer.flush()
