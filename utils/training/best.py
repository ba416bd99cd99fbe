"""The best checkpoint of a run by one validation scalar, derived from `metrics.jsonl` and kept in `best.json`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from utils.errors import InputError, warn
from utils.kinds.base import higher_is_better
from utils.system.atomic import write_json
from utils.tracking.metrics_file import BEST, read_metrics
from utils.training import checkpoint


def default_metric(scores: Mapping[str, float]) -> str | None:
    """The task's first metric on the first split that was not trained on; on the training images if there is none."""
    names = [name for name in scores if name.startswith("val/")]
    return next((name for name in names if not name.startswith("val/train/")), names[0] if names else None)


def mark_best(output_dir: Path, metric: str | None) -> dict[str, object] | None:
    """Write `best.json` and return it: {"metric", "value", "step", "checkpoint"}; None where nothing qualifies yet.

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
    on_disk = {checkpoint.step_of(folder): folder.name for folder in checkpoint.find(output_dir)}
    lines = [line for line in validations if line["step"] in on_disk and _is_finite(line.get(metric))]
    if metric is None or not lines:
        (output_dir / BEST).unlink(missing_ok=True)
        return None
    sign = -1 if higher_is_better(metric.rsplit("/", 1)[-1]) else 1
    line = min(lines, key=lambda line: sign * line[metric])
    found = {"metric": metric, "value": line[metric], "step": line["step"], "checkpoint": on_disk[line["step"]]}
    try:
        write_json(output_dir / BEST, found)
    except OSError as error:  # a full disk: no reason to end a run
        warn(f"{output_dir / BEST} could not be written ({error.strerror})")
        return None
    return found


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)  # metrics.jsonl has null for what is no number


def best_folder(output_dir: Path) -> str | None:
    """Name of the checkpoint that `best.json` names, None if there is none: pruning must spare it."""
    file = output_dir / BEST
    return json.loads(file.read_text())["checkpoint"] if file.is_file() else None
