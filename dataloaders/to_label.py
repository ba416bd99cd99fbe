"""Images to label: DIODE's or a folder's, and DIODE's measured maps of them."""

import shlex
from collections import Counter
from pathlib import Path

import numpy as np

from utils.errors import InputError, note
from utils.image_io.diode_names import SCENE_TYPES
from utils.image_io.files import PICTURES, VIDEOS, skipped_line
from utils.intrinsics import INTRINSICS
from utils.labels.encoding import SKY_NORMAL, fill

HOLES = {  # how `measured_map` closes them
    "normal": {
        "teacher": "normals as DIODE measured them, converted from x right, y up, z toward the viewer",
        "labels": "normals, x right, y down, z forward (opencv)",
        "invalid pixels": "nearest valid pixel; outdoors, with nothing valid above them, sky: facing the viewer",
    },
    "depth": {
        "teacher": "depth in metres as DIODE measured it",
        "labels": "near = white, linear in depth, between each picture's 2nd and 98th percentile of valid pixels",
        "invalid pixels": "nearest valid pixel; outdoors, with nothing valid above them, sky: as far as the farthest",
    },
}


def find_pictures(root: Path, output_dir: Path, splits: list[str], scene_types: list[str]) -> dict[str, Path]:
    """Name of the label, without ending -> image; sorted. DIODE's (below root/depths) or all below `root`.

    Files in `output_dir` are left out. Raises InputError if there are no images, or two with the same name.
    """
    if root.suffix.lower() in VIDEOS and root.is_file():
        folder = shlex.quote(str(root.with_suffix("")))
        cure = f"ffmpeg -i {shlex.quote(str(root))} {folder}/%06d.png"
        raise InputError(f"{root}: a video; extract its frames first (mkdir -p {folder} && {cure})")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder (from --input_dir)")
    diode = (root / "depths").is_dir()
    unknown = [name for name in scene_types if name not in SCENE_TYPES]
    if diode and unknown:
        raise InputError(f"--scene_types: {unknown[0]!r} is not out of {', '.join(SCENE_TYPES)}")
    base = root / "depths" if diode else root
    folders = [base / split / kind for split in splits for kind in scene_types] if diode else [base]
    found: dict[str, Path] = {}
    skipped: Counter[str] = Counter()
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        hidden = path.name.startswith(".") or output_dir.resolve() in path.resolve().parents
        if hidden or not path.is_file():
            continue
        if path.suffix.lower() not in PICTURES:
            skipped[path.suffix.lower()] += not diode  # whose tree also holds measured values
            continue
        name = path.relative_to(base).with_suffix("").as_posix()
        if name in found:
            raise InputError(f"{found[name]} and {path} would get one label: rename one of them")
        found[name] = path
    passed = skipped_line(skipped)
    if not found:
        raise InputError(f"{base}: no images ({', '.join(PICTURES)}) in it" + (f"; {passed}" if passed else ""))
    if passed:
        note(passed)
    return found


def measured_map(root: Path, name: str, task: str) -> tuple[np.ndarray, np.ndarray]:
    """DIODE's normals (H,W,3) or depth (H,W) of one image, holes closed (`HOLES`), and where it was valid."""
    read = INTRINSICS[task].map_kind.read_diode
    outdoors = name.split("/")[1:2] == ["outdoor"]
    if task == "normal":
        values, valid = read(root / "normals" / f"{name}_normal.npy")
        return fill(values, valid, outdoors, SKY_NORMAL), valid
    values, valid = read(root / "depths" / f"{name}_depth.npy")
    farthest = values[valid].max(initial=0)
    return fill(values, valid, outdoors, farthest)[..., 0].astype(np.float64), valid
