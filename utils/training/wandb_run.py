"""wandb's side of a run: its id, online or offline mode, parts that are not uploaded, and the hidden token."""

import netrc
import os
import re
import secrets
import string
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError

from utils.system.network import connection_error

BLOCK, PART = 32768, struct.Struct("<IHB")  # of wandb's files


def wandb_id(output_dir: Path) -> str:
    """The folder's run id, made on the first call."""
    file = output_dir / "wandb_id.txt"
    if not file.is_file() or not file.read_text().strip():
        alphabet = string.ascii_lowercase + string.digits
        file.write_text("".join(secrets.choice(alphabet) for _ in range(8)))
    return file.read_text().split()[0]


def wandb_mode(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """("online" | "offline" | WANDB_MODE, why it is offline). Never prompts, never waits for more than 3 seconds."""
    if environment.get("WANDB_MODE"):
        return environment["WANDB_MODE"], ""
    url = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if not environment.get("WANDB_API_KEY") and not _in_netrc(url.hostname or ""):
        return "offline", "not logged in: run `wandb login` or set WANDB_API_KEY"
    if failed := connection_error(url.geturl()):
        host, error = failed
        return "offline", f"{host} cannot be reached: {error}"
    return "online", ""


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def not_uploaded(output_dir: Path) -> list[Path]:
    """Folders of the run's offline parts that `wandb sync` has not uploaded."""
    return sorted(
        file.parent
        for file in output_dir.glob("wandb/offline-run-*/run-*.wandb")
        if not file.with_name(f"{file.name}.synced").is_file()
    )


def kept_locally(output_dir: Path) -> set[tuple[int, str]] | None:
    """The (step, name) in the files of this folder's run: all that wandb can have of a run that was killed. Returns
    None if no file exists, because the run has not begun or its files were removed after `wandb sync`.
    """
    files = sorted(output_dir.glob("wandb/*run-*/run-*.wandb"))
    return {pair for file in files for pair in _history(file)} if files else None


def _history(file: Path) -> Iterator[tuple[int, str]]:
    """The (step, name) of one file, without an end that a kill cut off."""
    from wandb.proto.wandb_internal_pb2 import Record  # only where wandb was asked for

    for content in _log_records(file.read_bytes()):
        record = Record()
        try:
            record.ParseFromString(content)
        except DecodeError:
            continue
        if record.WhichOneof("record_type") == "history" and record.history.HasField("step"):
            for item in record.history.item:
                yield record.history.step.num, item.key or "/".join(item.nested_key)


def _log_records(data: bytes) -> Iterator[bytes]:
    """The whole records of a log in LevelDB's format, for which wandb has no Python reader.

    A header of 7 bytes, then blocks of 32 KiB; in them parts of a checksum, a size and a kind (1: whole, 2: first, 3:
    middle, 4: last), and the content. A block ends in zeros where no further part fits.
    """
    at, content = 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        _, size, kind = PART.unpack_from(data, at)
        if left < 7 or kind == 0:
            at += left
            continue
        if at + 7 + size > len(data):
            return
        content += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield content
            content = b""


@contextmanager
def token_hidden() -> Iterator[None]:
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
