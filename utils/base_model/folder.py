"""One part of a model folder or hub repository in diffusers' format."""

from pathlib import Path
from typing import Any, TypeVar

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from utils.base_model.names import is_folder
from utils.base_model.single_file import SUFFIXES
from utils.errors import InputError, note
from utils.system.network import require

Component = TypeVar(
    "Component", bound=CLIPTokenizer | CLIPTextModel | AutoencoderKL | UNet2DConditionModel | DDIMScheduler
)

COMPONENTS = {  # subfolder -> a file that it must hold
    "tokenizer": "vocab.json",
    "text_encoder": "config.json",
    "vae": "config.json",
    "unet": "config.json",
    "scheduler": "scheduler_config.json",
}
HALF = "fp16"  # the variant that many repositories hold alone: model.fp16.safetensors


def load_component(kind: type[Component], name: str, component: str, revision: str | None = None) -> Component:
    """One part of a model folder or hub repository, e.g. (UNet2DConditionModel, name, "unet").

    Where there are only half-precision files (*.fp16.safetensors), those are read, with a note.

    Raises:
        InputError: the name is neither a model folder nor a hub name, or the part is missing or unreadable.
    """
    folder = Path(name)
    here = is_folder(name)
    if here:
        _check_folder(folder, component)
    where: dict[str, str | bool | None] = {"subfolder": component, "revision": revision}
    where |= {} if here else {"local_files_only": require(name, revision)}
    try:
        if not issubclass(kind, nn.Module):
            return kind.from_pretrained(name, **where)
        part, info = _from_pretrained(kind, name, component, where, here)
        if lost := sorted(info["missing_keys"]):  # the libraries would continue with random numbers in their place
            raise ValueError(f"{len(lost)} of its weights are not in the file, e.g. {lost[0]}")
        return part
    except Exception as error:  # OSError, HTTP errors, SafetensorError, ...: all mean that the part is not readable
        place = folder / component if here else f"{component} of {name} on the hub"
        hint = "" if here else "; check the name and the network, or pass a local folder"
        raise InputError(f"{place}: cannot be loaded: {' '.join(str(error).split())[:300]}{hint}") from error


def _from_pretrained(kind: Any, name: str, component: str, where: dict, here: bool) -> tuple:
    """The part and what was missing: in full precision, or in half where that is all there is."""
    half = where | {"variant": HALF}
    if here and not _has_weights(Path(name) / component, half=False) and _has_weights(Path(name) / component, True):
        note(f"{Path(name) / component}: holds only {HALF} weights; they are read, and computed with in --dtype")
        return kind.from_pretrained(name, output_loading_info=True, **half)
    try:
        return kind.from_pretrained(name, output_loading_info=True, **where)
    except OSError as error:
        if here or "file named" not in str(error):  # both libraries word it like this when a repository lacks a file
            raise
        try:
            found = kind.from_pretrained(name, output_loading_info=True, **half)
        except OSError:
            raise error from None
    note(f"{component} of {name}: only {HALF} weights are there; they are read, and computed with in --dtype")
    return found


def _has_weights(folder: Path, half: bool) -> bool:
    """True if the folder of a component has weights in full precision or, with `half`, in half precision."""
    files = [path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)]
    return any((f".{HALF}" in name) == half for name in files)


def _check_folder(folder: Path, component: str) -> None:
    """InputError where `folder` is not a model or lacks this component; the message names what is there instead."""
    expected = folder / component / COMPONENTS[component]
    try:
        if expected.is_file() or expected.with_name("tokenizer.json").is_file():
            return
        parts = [part for part in COMPONENTS if (folder / part).is_dir()]
        files = [path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size, default=None)
    except OSError as error:
        raise InputError(f"{expected}: cannot be read ({error.strerror})") from None
    if parts:
        raise InputError(
            f"{folder / component}: {COMPONENTS[component]} expected here; is {folder} a diffusers folder?"
        )
    whole = (
        f"pass the checkpoint itself, {largest}" if largest else "pass one that holds unet/, vae/, text_encoder/, ..."
    )
    raise InputError(f"{folder}: a folder, but not a model in diffusers' format; {whole}")
