"""metrics.jsonl, every scalar of a run: written line by line, cut back when a run is resumed."""

import json
import os
from itertools import count
from pathlib import Path

from utils.errors import note, warn
from utils.system.atomic import replace

BEST, METRICS = "best.json", "metrics.jsonl"


def read_metrics(output_dir: Path) -> list[dict]:
    """The lines of `metrics.jsonl`, each with its "step"; one that a kill cut off is skipped."""
    file, lines = output_dir / METRICS, []
    for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if line.endswith(b"\n") and isinstance(record, dict) and isinstance(record.get("step"), int):
            lines.append(record)
    return lines


def append(path: Path, line: str) -> None:
    """The whole line or, on a full disk, nothing of it and a warning: the next line must not begin in its middle."""
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            written = file.write(line.encode())
        except OSError as error:
            written, reason = -1, error.strerror
        if written != len(line.encode()):
            file.truncate(size)
            warn(f"{path}: a line could not be written ({reason if written < 0 else 'no space'}): {line.strip()}")


def forget_after(output_dir: Path, step: int, validation_steps: int) -> set[tuple[int, str]]:
    """Drop the lines of `metrics.jsonl` past `step`, which a resumed run writes anew.

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
    """Move an earlier run's `metrics.jsonl` out of the way of a run that starts anew in its folder."""
    file = output_dir / METRICS
    if file.exists():
        number = next(number for number in count(1) if not (output_dir / f"metrics-{number}.jsonl").exists())
        os.replace(file, output_dir / f"metrics-{number}.jsonl")
        note(f"{file} of an earlier run is metrics-{number}.jsonl now")


def is_validated(output_dir: Path, step: int) -> bool:
    """Whether `metrics.jsonl` has validation scores of this step."""
    lines = read_metrics(output_dir)
    return any(line["step"] == step and any(name.startswith("val/") for name in line) for line in lines)
