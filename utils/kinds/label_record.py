"""Records that travel with maps, compared with the use that is made of the maps.

    provenance.json     in or above a folder of labels: what pseudo_label.py writes
    file headers        of every .png and .exr that inference writes: task, and frame, polarity or colour space; an
                        .npy has none, so what stands for it is the header of the map next to it

Labels are read as this project's: normals x right, y down, z forward; depth near = white; albedo and shading
sRGB-coded.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from utils.errors import InputError
from utils.image_io.files import SIXTEEN, read_exr
from utils.intrinsics import INTRINSICS, Intrinsic
from utils.kinds.base import Contradiction
from utils.system.atomic import json_object

PROVENANCE = "provenance.json"  # in a folder of labels
OLDER = {"depth_coding": "linear"}  # what older records did not need to state
SOFTWARE = "intrinsic-lora"  # how our files' "software" begins
HEADERS = 3  # folders of which one file's header is read


@dataclass(frozen=True)
class Use:
    """The assumed meaning of maps, and what to do where a record contradicts it.

    frame, space, coding, align: of normals, colours and depth. cures: what to do, by these names, "task" and
    "polarity"; "{}" stands for what the record states.
    """

    intrinsic: Intrinsic
    cures: Mapping[str, str]
    frame: str = "opencv"
    space: str = "srgb"
    coding: str = "linear"
    align: str | None = None  # None: a training, where disparity is allowed


def training_use(intrinsic: Intrinsic) -> Use:
    """Maps as the targets of a training."""
    again = "make the labels again with --frame opencv (x right, y down, z forward)"
    cures = {
        "task": f"pass labels of {intrinsic.name}, or start the script for {{}}",
        "frame": again,
        "space": "make the labels again, sRGB-coded",
        "coding": "pass --depth_coding as it says, or other labels",
        "polarity": "make the labels again with near = white",
    }
    return Use(intrinsic, cures, coding=intrinsic.depth_coding, space=intrinsic.coding)


def check_record(folders: Iterable[Path], use: Use) -> list[str]:
    """Compare the records of the maps in `folders` with `use`; notes on what else they state.

    Each folder's record is the header of its first .png or .exr if our inference wrote that, else the provenance.json
    nearest above it; maps without a record are trusted. Raises InputError, with advice, for a contradiction or for a
    record that cannot be read.
    """
    notes: list[str] = []
    seen: set[Path] = set()
    for number, folder in enumerate(folders):
        header = header_of(folder, use.intrinsic.name) if number < HEADERS else None
        if header is not None:
            notes += check_facts(header[1], use, header[0])
            continue
        for place in (folder, *folder.absolute().parents):
            if place in seen:
                break
            seen.add(place)
            if (place / PROVENANCE).is_file():
                notes += _check_provenance(place / PROVENANCE, use)
                break
    return list(dict.fromkeys(notes))


def check_facts(facts: Mapping[str, str], use: Use, where: Path | str) -> list[str]:
    """Compare what a map's header or record states with `use`. Keys that are read: task; frame, polarity or
    colour_space, or for all three convention; depth_coding. Others are of no concern. InputError begins with `where`.
    """
    intrinsic = use.intrinsic
    task = facts.get("task")
    if task is not None and task != intrinsic.name:
        _refuse(where, "task", f"maps of {task}, not of {intrinsic.name}", task, use)
    words = next((facts[key] for key in (intrinsic.convention[0], "convention") if facts.get(key)), "")
    try:
        return intrinsic.map_kind.check_record(words, facts, use, where)
    except Contradiction as error:
        _refuse(where, error.name, str(error), error.stated, use)
        raise


def header_of(folder: Path, task: str | None = None) -> tuple[Path, dict[str, str]] | None:
    """(file, header's text) of the first .png or .exr in or below `folder` that our inference wrote; None where it
    wrote neither the first .png nor the first .exr.

    task: maps that have another intrinsic's name count only where there are no others.
    """
    tails = tuple(f"_{name}" for name in INTRINSICS if name != task) if task else ()
    others: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        maps = [Path(place, name) for name in sorted(files) if name.lower().endswith((".png", ".exr"))]
        own = [path for path in maps if not path.stem.removesuffix(SIXTEEN).removesuffix("_pred").endswith(tails)]
        if own:
            return _first_of_ours(own)
        others = others or maps
    return _first_of_ours(others)


def loras_of(maps: Iterable[Path]) -> Counter[tuple[str, str]]:
    """(LoRA's name, its SHA-256) -> number of these .png that it has predicted; others are not counted. Headers alone
    are read.
    """
    found: Counter[tuple[str, str]] = Counter()
    for path in maps:
        try:
            with Image.open(path) as image:
                about = image.info  # not .text, which decodes the pixels first
        except (OSError, ValueError, SyntaxError):  # whoever reads the map will name it
            continue
        if "lora_sha256" in about:
            found[str(about.get("lora")), str(about["lora_sha256"])] += 1
    return found


def _first_of_ours(maps: Sequence[Path]) -> tuple[Path, dict[str, str]] | None:
    for ending in (".png", ".exr"):
        path = next((path for path in maps if path.suffix.lower() == ending), None)
        text = {} if path is None else _text_of(path)
        if path is not None and text.get("software", "").startswith(SOFTWARE):
            return path, text
    return None


def _text_of(path: Path) -> dict[str, str]:
    """The text in a map's header; {} where it cannot be read: whoever reads the map will name it."""
    try:
        if path.suffix.lower() == ".exr":
            text = read_exr(path)[1]
            return {
                key: value for key, value in text.items() if key != "colour_space"
            }  # linear light, and read as such
        with Image.open(path) as image:
            return dict(getattr(image, "text", {}))
    except Exception:
        return {}


def _check_provenance(path: Path, use: Use) -> list[str]:
    try:
        found = OLDER | json_object(path.read_text(encoding="utf-8"))
        conventions, counts = found.get("conventions") or {}, found.get("counts") or {}
        facts = {"task": found.get("task"), "convention": conventions.get("labels", "")}
        facts |= {"depth_coding": found["depth_coding"]}
        teacher = (found.get("teacher") or {}).get("name", "an unnamed teacher")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove it or make the labels again") from None
    if facts["task"] is None:
        return [f"{path}: is not a record of pseudo_label.py (it has no task); the maps are taken at your word"]
    notes = check_facts(facts, use, path)
    if counts.get("complete") is False:
        notes.append(
            f"{path}: labelling is not finished ({counts.get('failed', 'some')} images failed or are to come); run "
            "the command that makes the labels again"
        )
    if use.align is not None:
        notes.append(f"{path}: these are pseudo labels, of {teacher}")
    return notes


def _refuse(where: Path | str, name: str, what: str, stated: str, use: Use) -> None:
    raise InputError(f"{where}: {what}: {use.cures[name].format(stated)}")


def record_above(folder: Path) -> dict:
    """The content of the provenance.json nearest above `folder`, or in it; {} without a readable one."""
    for place in (folder, *folder.absolute().parents):
        try:
            return OLDER | json_object((place / PROVENANCE).read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return {}
    return {}
