"""Atomic writes: after a kill a file is complete or absent.

Checkpoints, LoRAs, caches and records are also flushed to the disk, and so survive a power cut (`replace`, `seal`).
Files that can be predicted again are not (`save` and the functions that use it): flushing takes longer than writing.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from utils.errors import NO_SPACE, InputError

MANIFEST, LOCK, SUMS = "manifest.json", ".lock", "SHA256SUMS"
_UMASK = os.umask(0)
os.umask(_UMASK)  # reading it means setting it; done once, because other threads write files later
_locks: dict[Path, TextIO] = {}  # closing a file unlocks it


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path, flag: str) -> None:
    """Make a folder for output, with its parents; InputError naming the flag where that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag}: {path} cannot be written ({error.strerror}); name another folder") from None


def replace(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Let `write` fill a file next to `path` and rename it to `path`; if `durable`, once it is on the disk.

    Raises OSError naming `path` where there is no space, whatever `write` raises then: safetensors, PyTorch, OpenEXR
    and FFmpeg have exceptions of their own.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            write(part)
        except Exception as error:
            if is_full(path.parent, error):  # the half of the file that was written is still there
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
            raise
        part.chmod(0o666 & ~_UMASK)  # safetensors writes files that only their owner can read
        if durable:
            sync(part)
        part.replace(path)
        if durable:
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def is_full(folder: Path, error: Exception) -> bool:
    """True if `error` came of a disk, a quota or a limit on file sizes that is used up."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    try:
        return "o space left on device" in str(error) or shutil.disk_usage(folder).free < 2**16
    except OSError:
        return False


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, atomically. Raises OSError where it cannot be written."""
    replace(path, lambda part: part.write_text(json.dumps(content, indent=1) + "\n"))


def json_object(text: str | bytes) -> dict[str, Any]:
    """The object in a JSON text. ValueError where it is none, also where it is nested too deeply for Python."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}, not an object")
    return found


def save_npy(path: Path, values: np.ndarray) -> None:
    """Write an array atomically. Raises InputError where it cannot be written."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.save(file, values)

    save(path, write)


def save_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises InputError where it cannot be written."""
    save(path, lambda part: part.write_bytes(content))


def save(path: Path, write: Callable[[Path], object]) -> None:
    """`replace` for a file that can be made again: not flushed. Raises InputError where it cannot be written."""
    try:
        replace(path, write, durable=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def seal(folder: Path) -> None:
    """Write the manifest of `folder`'s files, size and SHA-256 of each, and wait until everything is on the disk."""
    files = {path.name: _describe(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"format_version": 1, "files": files}, indent=1) + "\n")
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def damage(folder: Path) -> str | None:
    """The damage of a sealed folder: a file that is missing, truncated or changed; None if there is none."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"].items()
        for name, expected in files:
            if not (folder / name).is_file():
                return f"{name} is missing"
            actual = _describe(folder / name)
            if actual["bytes"] != expected["bytes"]:
                return f"{name} has {actual['bytes']} bytes, {expected['bytes']} were written"
            if actual != expected:
                return f"{name} has changed since it was written (SHA-256)"
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was not finished, or is of an older version"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({' '.join(str(error).split())[:100]})"
    return None


def check_sums(place: Path) -> None:
    """Compare a file, or all files in a folder, with the lines of a SUMS (as `sha256sum` writes it) next to it or in
    one of the three folders above. Nothing is checked where there is none.

    Raises InputError for a file that is missing or has other content.
    """
    place = Path(os.path.realpath(place))
    for folder in (place, *place.parents[:4]):
        if not (folder / SUMS).is_file():
            continue
        for digest, name in re.findall(rb"^([0-9a-f]{64}) [ *](.+)$", (folder / SUMS).read_bytes(), re.MULTILINE):
            path = folder / os.fsdecode(name)
            if place != path and place not in path.parents:
                continue
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest.decode():
                state = "has changed" if path.is_file() else "is missing"
                raise InputError(
                    f"{path}: {state} (its SHA-256 is in {folder / SUMS}); restore it, or remove its line there if "
                    "the change is yours"
                )


def _describe(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def lock(folder: Path, doing: str = "training", flag: str = "--output_dir") -> None:
    """Keep other processes from writing into `folder` while this one runs; InputError if one already does.

    doing, flag: for the message. A POSIX lock: the system releases it however the process ends, and forked workers
    do not inherit it.
    """
    folder = folder.resolve()
    if folder in _locks:
        return
    try:
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise InputError(f"{flag}: {folder} cannot be written ({error.strerror}); name another folder") from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{folder}: another process is {doing} into it; wait for it, or name another {flag}"
        ) from None
    except OSError:
        pass  # a file system without locks
    _locks[folder] = file


def unlock(folder: Path) -> None:
    """Release the lock of `lock`."""
    file = _locks.pop(folder.resolve(), None)
    if file is not None:
        file.close()
