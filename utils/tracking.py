"""Where a run's numbers and panels go: wandb, TensorBoard, and always `metrics.jsonl` and `validation/`."""

import json
import math
import netrc
import os
import secrets
import socket
import string
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
from accelerate import Accelerator
from PIL import Image

from utils.durable import replace
from utils.errors import note, warn
from utils.validation import write_panels

PROJECT = "intrinsic-lora"
METRICS = "metrics.jsonl"
PANELS = {"train": "training images", "indoors": "test images 1", "outdoor": "test images 2"}  # the released names


def start_trackers(accelerator: Accelerator, output_dir: Path, config: Mapping[str, object]) -> None:
    """Open the trackers that `accelerator` was made with (main process only).

    wandb: the run is named after the output folder, and its id is kept in `<output_dir>/wandb_id.txt`, so that every
    start in that folder goes on with the same curve.
    """
    if not accelerator.is_main_process:
        return
    plain = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in config.items()}
    init = {}
    if any(str(name) == "wandb" for name in accelerator.log_with):
        mode, reason = wandb_mode()
        init = {
            "name": output_dir.stem,
            "id": wandb_id(output_dir),
            "resume": "allow",
            "mode": mode,
            "dir": output_dir,
        }
        if reason:
            note(f"wandb is offline ({reason}); upload later with: wandb sync {output_dir}/wandb/offline-run-*")
    accelerator.init_trackers(PROJECT, config=plain, init_kwargs={"wandb": init})


def wandb_id(output_dir: Path) -> str:
    """The folder's run id, made on the first call."""
    file = output_dir / "wandb_id.txt"
    if not file.is_file() or not file.read_text().strip():
        alphabet = string.ascii_lowercase + string.digits
        file.write_text("".join(secrets.choice(alphabet) for _ in range(8)))
    return file.read_text().split()[0]


def wandb_mode(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """("online" | "offline" | WANDB_MODE, why it is offline). Never asks, never waits for more than 3 seconds."""
    if environment.get("WANDB_MODE"):
        return environment["WANDB_MODE"], ""
    url = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if not environment.get("WANDB_API_KEY") and not _netrc_knows(url.hostname):
        return "offline", "not logged in: run `wandb login` or set WANDB_API_KEY"
    target = urlsplit(getproxies().get(url.scheme, url.geturl()))
    try:
        port = target.port or (443 if target.scheme == "https" else 80)
        socket.create_connection((target.hostname, port), timeout=3).close()
    except OSError as error:
        return "offline", f"{target.hostname} cannot be reached: {error}"
    return "online", ""


def _netrc_knows(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def log_scalars(accelerator: Accelerator, output_dir: Path, values: Mapping[str, float], step: int) -> None:
    """To every tracker, and as one line of `metrics.jsonl` (main process only; null for what is no finite number)."""
    if accelerator.is_main_process:
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        _append(output_dir / METRICS, json.dumps({"step": step, **plain}) + "\n")
    accelerator.log(dict(values), step=step)


def _append(path: Path, line: str) -> None:
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


def log_panels(
    accelerator: Accelerator, output_dir: Path, panels: Mapping[str, list[tuple[str, Image.Image]]], step: int
) -> None:
    """To `validation/` and to every tracker, there under the released names and (wandb) captioned with the stems."""
    write_panels(panels, output_dir / "validation", step)
    for tracker in accelerator.trackers:
        for split, rows in panels.items():
            name = f"validation: {PANELS.get(split, split)}"
            if tracker.name == "wandb":
                import wandb  # only where it was asked for

                tracker.log({name: [wandb.Image(image, caption=stem) for stem, image in rows]}, step=step)
            else:
                tracker.log_images(
                    {name: np.stack([np.asarray(image) for _, image in rows])}, step, dataformats="NHWC"
                )


def forget_after(output_dir: Path, step: int) -> None:
    """Drop the lines of `metrics.jsonl` past `step`: a resumed run writes them anew."""
    file = output_dir / METRICS
    if file.is_file():
        kept = [json.dumps(record) + "\n" for record in _records(file) if record["step"] <= step]
        replace(file, lambda part: part.write_text("".join(kept)))


def set_aside(output_dir: Path) -> None:
    """Move an earlier run's `metrics.jsonl` out of the way of a run that starts anew in its folder."""
    file = output_dir / METRICS
    if file.exists():
        number = next(number for number in count(1) if not (output_dir / f"metrics-{number}.jsonl").exists())
        os.replace(file, output_dir / f"metrics-{number}.jsonl")
        note(f"{file} of an earlier run is metrics-{number}.jsonl now")


def is_validated(output_dir: Path, step: int) -> bool:
    """Whether `metrics.jsonl` has validation scores of this step."""
    file = output_dir / METRICS
    return file.is_file() and any(
        record["step"] == step and any(name.startswith("val/") for name in record) for record in _records(file)
    )


def _records(file: Path) -> list[dict]:
    """Its lines; the last one may have been cut by a kill, and is no record then."""
    records = []
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if line.endswith(b"\n") and isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
