"""Servers and hub repositories: reachability, checked once and briefly, and files from the local cache or the hub.

Imports nothing heavy, so that a command line can refuse a mistyped name immediately.
"""

import glob
import os
import socket
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from utils.cli import nearest
from utils.errors import InputError, note, one_line

PATIENCE = 3.0  # seconds to wait for a server: the libraries would retry for minutes
BASE_FILES = ("model_index.json", "config.json", "unet/config.json")


def connection_error(url: str) -> tuple[str, OSError] | None:
    """The host that `url` is reached through (a proxy where one is set) and its error; None if it answers."""
    scheme = urlsplit(url).scheme
    target = urlsplit(getproxies().get(scheme, url))
    try:
        port = target.port or (443 if target.scheme == "https" else 80)
        socket.create_connection((target.hostname, port), timeout=PATIENCE).close()
    except OSError as error:
        return str(target.hostname), error
    return None


def looks_like_one(name: str) -> bool:
    """True if `name` has the form owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


@cache
def unreachable(endpoint: str) -> str:
    """Why the hub cannot be reached, or "" if it can."""
    if failed := connection_error(endpoint):
        host, error = failed
        return f"{host} cannot be reached ({error.strerror or error})"
    return ""


def require(name: str, revision: str | None = None, files: Sequence[str] | None = BASE_FILES) -> bool:
    """True if the hub repository `name` must be read from the local cache because the hub cannot be reached.

    files: at least one of them is in the cache if the repository is; None: any. Raises InputError, without retries,
    where the repository is in neither place; a local folder with a similar name is suggested.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    if not offline:
        return False
    try:
        if files is None:
            cached = bool(_cached_files(name))
        else:
            cached = any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files)
    except ValueError as error:  # the hub's rules for names
        reason = one_line(str(error))[:150]
        raise InputError(
            f"{name}: no such folder, and not a name for the hub ({reason}); pass a local folder"
        ) from None
    if cached:
        if not os.environ.get("HF_HUB_OFFLINE"):
            _note_once(f"{offline}: {name} is read from the local cache")
        return True
    raise InputError(
        f"{name}: no such folder here ({Path(name).absolute()}), not in the hub's local cache, and "
        f"{offline}{nearest(name)}; pass a local folder, or "
        f"{'unset HF_HUB_OFFLINE' if constants.HF_HUB_OFFLINE else 'check the network'}"
    )


@cache
def _note_once(text: str) -> None:
    """A base is loaded part by part: a note that holds for all parts is printed once."""
    note(text)


def download(name: str, files: Sequence[str]) -> Path:
    """A folder with those of `files` that the repository `name` has, from the local cache or the hub. See `require`
    for errors.
    """
    from huggingface_hub import snapshot_download

    offline = require(name, files=files)
    try:
        patterns = [glob.escape(file) for file in files]
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
    except Exception as error:  # not found, private, no network, no space: never a bug of this project
        raise _unavailable(name, error) from None


@cache
def files_of(name: str) -> tuple[str, ...]:
    """The files of the repository `name` on the hub or, where that cannot be reached, those in the local cache. See
    `require` for errors.
    """
    from huggingface_hub import HfApi

    if require(name, files=None):
        return _cached_files(name)
    try:
        return tuple(HfApi().list_repo_files(name))
    except Exception as error:
        raise _unavailable(name, error) from None


def _cached_files(name: str) -> tuple[str, ...]:
    """The files of a repository that are in the local cache. Raises ValueError for what is not a repository's name."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:  # no pattern: a snapshot counts although most of its files were never downloaded
        folder = Path(snapshot_download(name, allow_patterns=[], local_files_only=True))
    except LocalEntryNotFoundError:
        return ()
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _unavailable(name: str, error: Exception) -> InputError:
    reason = one_line(" ".join(str(error).split()))[:200]
    return InputError(
        f"{name}: no such folder here ({Path(name).absolute()}), and not available from the hub ({reason}); check the "
        "name, or pass a file"
    )
