"""Where a run's numbers and panels go: wandb, TensorBoard, and always `metrics.jsonl` and `validation/`."""

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import WandBTracker
from PIL import Image

from utils.errors import InputError, note
from utils.tracking.metrics_file import METRICS, append, read_metrics
from utils.tracking.settings import TrackingSettings
from utils.tracking.wandb_run import kept_locally, not_uploaded, token_hidden, wandb_id, wandb_mode

FLUSH = 0.05  # seconds until wandb's file has what was logged; its default, 15, would lose them in a kill
PANELS = {"train": "training images", "indoors": "test images 1", "outdoor": "test images 2"}  # the released names


def start_trackers(
    accelerator: Accelerator,
    output_dir: Path,
    config: Mapping[str, object],
    settings: TrackingSettings,
    resumed_at: int | None = None,
    sent: Collection[tuple[int, str]] = (),
) -> None:
    """Open the trackers that `accelerator` was made with (main process only), and show them `config`.

    The run's id is kept in `<output_dir>/wandb_id.txt`, so that every start in that folder continues the same curve.
    resumed_at: the step of the checkpoint that this start continues from, -1 where there was none yet. TensorBoard
    forgets what came after it. wandb cannot: it is not sent again what it has, and is sent what it lacks of the steps
    up to the checkpoint. sent: the (step, scalar) that `forget_after` dropped.
    Raises InputError where wandb continues another run than this folder's.
    """
    if not accelerator.is_main_process:
        return
    wanted = {str(each) for each in accelerator.log_with}
    init: dict[str, dict[str, object]] = {"tensorboard": {} if resumed_at is None else {"purge_step": resumed_at + 1}}
    known_to_wandb = (output_dir / "wandb_id.txt").is_file()
    if "wandb" in wanted:
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
    held = kept_locally(output_dir) if "wandb" in wanted else None  # before this start's file is there
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
    """To every tracker, and as one line of `metrics.jsonl` (main process only; null for what is no finite number).

    complete: nothing more is coming for this step. wandb keeps a step in memory until then, and a killed run loses it.
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
    """To every tracker, under the released names, each picture captioned with its stem.

    Completes the step (see `log_scalars`).
    """
    named = {f"validation: {PANELS.get(split, split)}": rows for split, rows in panels.items()}
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            import wandb  # only where it was asked for

            shown = {name: [wandb.Image(image, caption=stem) for stem, image in rows] for name, rows in named.items()}
            if not any(at == step and name.startswith("val/") for at, name in tracker.sent):
                tracker.log(shown, step=step, commit=True)
        else:
            for name, rows in named.items():
                for stem, image in rows:
                    tracker.writer.add_image(f"{name}/{stem}", np.asarray(image), step, dataformats="HWC")
            tracker.writer.flush()


def log_best(accelerator: Accelerator, best: Mapping[str, object] | None, step: int) -> None:
    """What `utils.training.best.mark_best` found: into wandb's summary as `best/...`, into TensorBoard as text."""
    if not best:
        return
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            tracker.run.summary.update({f"best/{key}": value for key, value in best.items()})
        else:
            tracker.writer.add_text("best", _table(best), step)
            tracker.writer.flush()
