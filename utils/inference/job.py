"""A LoRA's metadata, and the user's flags that override it: task, prompt, base model. Imports no torch."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.cli import nearest
from utils.errors import InputError
from utils.inference.view import View
from utils.intrinsics import DEPTH, INTRINSICS, Intrinsic
from utils.lora import SAFETENSORS, LoraFile, read_lora
from utils.lora.files import find_lora, is_named_for, is_on_hub, named_for
from utils.paths import ROOT

SCRIPTS = {
    "single-step": "inference_sd_single.py",
    "augunet": "inference_augunet.py",
    "gan": "inference_gan.py",
    "autoregressive": "inference_ar.py",
}
MODELS = ("unet", "transformer", "generator.safetensors")  # a base model's folder has one of them
BASES = {"single-step": "runwayml/stable-diffusion-v1-5", "augunet": "stabilityai/stable-diffusion-2-1"}  # the paper's
SHIPPED = ROOT / "miniworld" / "mini-loras"
RELEASED = "https://github.com/duxiaodan/intrinsic-lora"  # its README links to the authors' weights
FAR = 1.5  # times the training's resolution, or less than its 1.5th part: worth a warning


@dataclass(frozen=True)
class Job:
    """The prediction with one LoRA: of what, and how.

    name: the LoRA as the user named it. method: a key of SCRIPTS. model: the base, a local folder or hub name;
    trained_on: the one that the LoRA's metadata names. timestep, resolution: the training's, where the metadata has
    them. depth_coding: of the labels it was trained on, which inference undoes. closing: notes for the user, printed
    when all is done.
    """

    name: str
    lora: LoraFile = field(repr=False, compare=False)  # read once, though its header is needed before its weights
    method: str
    intrinsic: Intrinsic
    prompt: str
    model: str
    trained_on: str | None
    timestep: float | None
    resolution: int | None
    depth_coding: str = "linear"
    closing: tuple[str, ...] = ()

    @property
    def trained_at(self) -> int:
        """Side of the training images in pixels; the paper's where the file does not say."""
        return self.resolution or 512

    @property
    def facts(self) -> dict[str, str]:
        """How its maps were made, for the metadata of their files. Paths are cut to their last two parts: readers need
        not know where the files were.
        """
        with Path(self.lora.path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"base": short(self.model), "lora": short(self.name), "lora_sha256": digest, "prompt": self.prompt}

    def far(self, view: View) -> str:
        """A warning, if the images will have another size than those that the LoRA was trained on; else empty."""
        flag, side = ("--tile", view.tile) if view.tile else ("--resolution", view.resolution)
        if side is None or self.resolution is None or 1 / FAR <= side / self.resolution <= FAR:
            return ""
        return (
            f"{flag}={side} is far from the {self.resolution} pixels that {self.name} was trained at; maps may be poor"
        )


def describe(
    lora: str | Path,
    method: str | None = None,
    task: str | None = None,
    prompt: str | None = None,
    base: str | None = None,
    depth_coding: str | None = None,
) -> Job:
    """Read a LoRA; its metadata (none in .bin files) fills in what is left out, then the paper's values do. A file
    without metadata is for the intrinsic that is in its name, else for depth, as in the released script.

    Raises InputError where the LoRA was made for another method than `method` (None: any kind of diffusion), or for a
    base model that is not here.
    """
    check_lora(lora)
    file = read_lora(lora)
    metadata = file.metadata
    made_for = metadata.get("method", method or "single-step")
    if made_for not in ((method,) if method else BASES):
        cure = f"run {SCRIPTS[made_for]}" if made_for in SCRIPTS else "no inference script predicts with it"
        raise InputError(f"{lora}: made for {made_for}: {cure}")
    trained_for = metadata.get("task", _named_task(Path(file.path)))
    if task is None and trained_for not in (None, *INTRINSICS):
        raise InputError(
            f"{lora}: its header has task={trained_for!r}, unknown here; pass --task {'|'.join(INTRINSICS)}"
        )
    intrinsic = INTRINSICS[task or trained_for or DEPTH.name]
    own_prompt, closing = metadata.get("prompt", intrinsic.prompt), []
    if trained_for not in (None, intrinsic.name):
        closing.append(f"{lora} was trained for {trained_for}, predicting {intrinsic.name} because of --task")
        own_prompt = intrinsic.prompt
    elif prompt is not None and metadata.get("prompt", prompt) != prompt:
        closing.append(f"{lora} was trained with the prompt {own_prompt!r}, predicting with {prompt!r}")
    trained_on = find_base(metadata["base_model"], file.path) if "base_model" in metadata else None
    model = base or trained_on or BASES.get(made_for)
    if model is None:
        raise InputError(f"{lora}: does not say what it was made for; pass --pretrained_model_name_or_path")
    if base is None and Path(model).is_absolute() and not Path(model).exists():
        raise InputError(f"{lora}: made for {model}, which is not here; pass --pretrained_model_name_or_path")
    return Job(
        name=str(lora),
        lora=file,
        method=made_for,
        intrinsic=intrinsic,
        prompt=own_prompt if prompt is None else prompt,
        model=model,
        trained_on=trained_on,
        timestep=_time(str(lora), metadata),
        resolution=_whole(str(lora), metadata, "resolution", 1),
        depth_coding=find_coding(str(lora), metadata, intrinsic, depth_coding),
        closing=tuple(closing),
    )


def _named_task(file: Path) -> str | None:
    """The intrinsic in a file's name, where there is exactly one."""
    found = [task for task in INTRINSICS if is_named_for(file.name, task)]
    return found[0] if len(found) == 1 else None


def _time(lora: str, metadata: Mapping[str, str]) -> float | None:
    """The single step's time in a LoRA's header, of a flow model 0 to 1; None: not there. InputError as `_whole`'s."""
    text = metadata.get("timestep", "")
    if re.fullmatch(r"(0|1)\.[0-9]{1,20}|[0-9](\.[0-9]{1,20})?e-[0-9]{1,2}", text) and 0 <= float(text) <= 1:
        return float(text)
    return _whole(lora, metadata, "timestep", 0)


def _whole(lora: str, metadata: Mapping[str, str], key: str, least: int) -> int | None:
    """A whole number in a LoRA's header; None: not there. InputError for anything else or less than `least`."""
    text = metadata.get(key)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise InputError(
            f"{lora}: its header has {key}={text[:60]!r}, not a whole number of at least {least}; the header was "
            "changed or damaged: take the original file"
        )
    return int(text)


def find_coding(lora: str, metadata: Mapping[str, str], intrinsic: Intrinsic, wanted: str | None) -> str:
    """The coding of the depth that a LoRA predicts: its metadata's, or what is wanted where it has none (.bin).

    Raises InputError where they contradict each other, for a coding unknown here, and for maps other than depth.
    """
    if len(intrinsic.map_kind.label_codings) == 1:
        if wanted is not None:
            raise InputError(f"--depth_coding: means nothing for {intrinsic.name}, only for depth; leave it out")
        return "linear"
    said = metadata.get("depth_coding", "linear" if "task" in metadata else None)
    if said is not None and said not in intrinsic.map_kind.label_codings:
        raise InputError(f"{lora}: its depth has {said!r} coding, which this version does not know; take a newer one")
    if None not in (said, wanted) and said != wanted:
        raise InputError(f"--depth_coding={wanted}: {lora} was trained on {said} labels; leave the flag out")
    return said or wanted or "linear"


def by_task(loras: Sequence[str | Path], task: str | None = None) -> list[str | Path]:
    """LoRAs, where a folder, or a repository of the hub, whose files are named for intrinsics is replaced by the one
    that is named for `task` or, without a task, by all of them (see `named_for`).
    """
    found: list[str | Path] = []
    for lora in loras:
        found += named_for(lora, [task] if task else list(INTRINSICS)).values() or [lora]
    return found


def check_lora(path: str | Path, default: str | None = None, task: str | None = None) -> None:
    """InputError for a --lora that does not exist, here or on the hub, with the nearest name, or with the LoRAs that
    exist. task: see `by_task`.
    """
    if Path(path).exists() or (is_on_hub(path) and path != default):
        for file in by_task([path], task):
            if is_on_hub(file):
                find_lora(file)
        return
    if default is not None and Path(path) == Path(default):
        shipped = sorted(folder.name for folder in SHIPPED.glob("*") if (folder / SAFETENSORS).is_file())
        raise InputError(
            f"{Path(path)}: no such LoRA file; pass --lora: your training's output folder, a small one that is here "
            f"({_from_here(SHIPPED)}/{{{','.join(shipped)}}}), or the authors' weights, linked from {RELEASED}"
        )
    hint, elsewhere = nearest(path), ROOT / path
    if not Path(path).is_absolute():
        hint += f" (tried {Path(path).absolute()}: relative to the current folder)"
        hint += f"; pass {elsewhere}" if elsewhere.exists() else ""
    raise InputError(f"{path}: no such LoRA file{hint}")


def find_base(name: str, lora: str) -> str:
    """The base model that a LoRA file names: a folder below the current one, or below one that holds the file.

    So a LoRA that was moved together with its base finds it, whatever the current folder is. A name that is not a
    folder anywhere is returned as it is: a hub name.
    """
    if Path(name).is_absolute() or Path(name).is_dir():
        return name
    folders = [parent / name for parent in Path(lora).resolve().parents]
    return next((str(folder) for folder in folders if any((folder / part).exists() for part in MODELS)), name)


def short(name: str) -> str:
    """The last two parts of a path."""
    return "/".join(Path(name).parts[-2:])


def _from_here(path: Path) -> str:
    """`path` as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
