"""Repositories on the hub: whether it answers at all, and what it keeps, in its local cache or to download.

Imports nothing heavy, so that a command line can refuse a mistyped name at once.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from utils.cli import nearest
from utils.errors import InputError, note, one_line
from utils.system.network import connection_error

BASE_FILES = ("model_index.json", "config.json", "unet/config.json")


def looks_like_one(name: str) -> bool:
    """Whether `name` has the form owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


@cache
def unreachable(endpoint: str) -> str:
    """Why the hub cannot be reached, or "" if it can."""
    if failed := connection_error(endpoint):
        host, error = failed
        return f"{host} cannot be reached ({error.strerror or error})"
    return ""


def require(name: str, revision: str | None = None, files: Sequence[str] = BASE_FILES) -> bool:
    """Whether to read the hub repository `name` from the local cache alone: the hub is not reachable, but it is there.

    files: one of them is in the cache, if the repository is. Raises InputError, at once, where it is in neither place;
    a local folder of nearly that name is suggested.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    if not offline:
        return False
    try:
        cached = any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files)
    except ValueError as error:  # the hub's rules for names
        reason = one_line(str(error))[:150]
        raise InputError(f"{name}: no such folder, nor a name for the hub ({reason}); pass a local folder") from None
    if cached:
        if not os.environ.get("HF_HUB_OFFLINE"):
            _note_once(f"{offline}: {name} is read from the local cache")
        return True
    raise InputError(
        f"{name}: no such folder here, not in the hub's local cache, and {offline}{nearest(name)}; "
        "pass a local folder, or check the network"
    )


@cache
def _note_once(text: str) -> None:
    """A base is asked for part by part: what holds for all of them is said once."""
    note(text)


def download(name: str, files: Sequence[str]) -> Path:
    """A folder with those of `files` that the repository `name` has, from the local cache or the hub. See `require`
    for errors.
    """
    from huggingface_hub import snapshot_download

    offline = require(name, files=files)
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), local_files_only=offline))
    except Exception as error:  # not found, private, no network, no space: none of them is a defect of ours
        reason = one_line(" ".join(str(error).split()))[:200]
        raise InputError(f"{name}: not to be had from the hub ({reason}); check the name, or pass a file") from None
