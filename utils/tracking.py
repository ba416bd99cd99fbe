"""Where a run's numbers and panels go: wandb, TensorBoard, and always `metrics.jsonl` and `validation/`."""

import json
import netrc
import os
import re
import secrets
import socket
import string
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
from accelerate import Accelerator
from PIL import Image

from utils.best import METRICS, read_metrics
from utils.errors import note
from utils.validation import write_panels

PANELS = {"train": "training images", "indoors": "test images 1", "outdoor": "test images 2"}  # the released names


def start_trackers(
    accelerator: Accelerator,
    output_dir: Path,
    config: Mapping[str, object],
    project: str = "intrinsic-lora",
    name: str | None = None,
    tags: Sequence[str] = (),
    resumed_at: int | None = None,
    sent: Collection[tuple[int, str]] = (),
) -> None:
    """Open the trackers that `accelerator` was made with (main process only), and show them `config`.

    name, tags: of the run in wandb; left out, the name of `output_dir`. The run's id is kept in
    `<output_dir>/wandb_id.txt`, so that every start in that folder goes on with the same curve.
    resumed_at: the step of the checkpoint that this start goes on from. TensorBoard forgets what came after it; wandb
    cannot, so it is not told again what is in `sent`, the (step, scalar) that `forget_after` dropped.
    """
    if not accelerator.is_main_process:
        return
    wanted = {str(each) for each in accelerator.log_with}
    init = {"tensorboard": {} if resumed_at is None else {"purge_step": resumed_at + 1}}
    known_to_wandb = (output_dir / "wandb_id.txt").is_file()
    if "wandb" in wanted:
        import wandb

        mode, reason = wandb_mode()
        waiting = not_uploaded(output_dir)
        if mode == "online" and waiting and "WANDB_MODE" not in os.environ:
            mode, reason = "offline", f"{len(waiting)} earlier part(s) of this run are not uploaded yet"
        init["wandb"] = {
            "name": name or output_dir.resolve().name,
            "tags": list(tags) or None,
            "id": wandb_id(output_dir),
            "resume": "allow",
            "mode": mode,
            "dir": output_dir,
            "settings": wandb.Settings(x_transaction_log_flush_interval=1),  # 15 s of curve would die with a process
        }
        if reason:
            note(f"wandb is offline ({reason}); upload later with: wandb sync {output_dir}/wandb/offline-run-*")
    with _token_hidden():
        accelerator.init_trackers(project, init_kwargs=init)
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            tracker.sent = set(sent) if known_to_wandb else set()
            tracker.run.config.update(dict(config), allow_val_change=True)
        else:
            tracker.writer.add_text("config", _table(config), resumed_at or 0)
            tracker.writer.flush()


@contextmanager
def _token_hidden() -> Iterator[None]:
    """wandb writes the command line into its files; --hub_token must not be in it."""
    kept = sys.argv
    sys.argv = [re.sub(r"^(--hub_token=).*", r"\1***", word) for word in kept]
    for i, word in enumerate(kept[:-1]):
        if word == "--hub_token":
            sys.argv[i + 1] = "***"
    try:
        yield
    finally:
        sys.argv = kept


def _table(config: Mapping[str, object]) -> str:
    """A Markdown table, one row per value; a dictionary's values under `name.key`."""
    rows = []
    for name, value in config.items():
        parts = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, Mapping) else {name: value}
        rows += [f"| {key} | {str(each).replace('|', chr(92) + '|')} |" for key, each in parts.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def not_uploaded(output_dir: Path) -> list[Path]:
    """Folders of the run's offline parts that `wandb sync` has not uploaded."""
    return sorted(
        file.parent
        for file in output_dir.glob("wandb/offline-run-*/run-*.wandb")
        if not file.with_name(f"{file.name}.synced").is_file()
    )


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


def log_scalars(
    accelerator: Accelerator, output_dir: Path, values: Mapping[str, float], step: int, complete: bool
) -> None:
    """To every tracker, and as one line of `metrics.jsonl` (main process only).

    complete: nothing more is coming for this step. wandb keeps a step in memory until then, and a killed run loses it.
    """
    if accelerator.is_main_process:
        with open(output_dir / METRICS, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            new = {name: value for name, value in values.items() if (step, name) not in tracker.sent}
            if new:
                tracker.log(new, step=step, commit=complete)
        else:
            tracker.log(values, step=step)


def log_panels(
    accelerator: Accelerator, output_dir: Path, panels: Mapping[str, list[tuple[str, Image.Image]]], step: int
) -> None:
    """To `validation/` and to every tracker, under the released names, each picture captioned with its stem.

    Completes the step (see `log_scalars`).
    """
    write_panels(panels, output_dir / "validation", step)
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
    """The best checkpoint (`utils.best.mark_best`): into wandb's summary as `best/...`, into TensorBoard as text."""
    for tracker in accelerator.trackers if best else ():
        if tracker.name == "wandb":
            tracker.run.summary.update({f"best/{key}": value for key, value in best.items()})
        else:
            tracker.writer.add_text("best", _table(best), step)
            tracker.writer.flush()


def forget_after(output_dir: Path, step: int, validation_steps: int) -> set[tuple[int, str]]:
    """Drop the lines of `metrics.jsonl` past `step`, which a resumed run writes anew.

    Returns the (step, scalar) dropped that wandb has: all but those of a step whose validation was cut off.
    """
    file = output_dir / METRICS
    lines = read_metrics(output_dir)
    if file.is_file():
        file.write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step))
    dropped = {(line["step"], name) for line in lines if line["step"] > step for name in line if name != "step"}
    end = max((at for at, _ in dropped), default=step)
    if end % validation_steps == 0 and not any(at == end and name.startswith("val/") for at, name in dropped):
        return {(at, name) for at, name in dropped if at != end}
    return dropped
