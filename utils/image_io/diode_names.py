"""How DIODE names its files and lists its samples: the one reader of diode_meta.json."""

import json
from collections.abc import Iterable
from pathlib import Path

from utils.errors import InputError
from utils.paths import check_folder

Meta = dict[str, dict[str, dict[str, dict[str, list[str]]]]]  # [split][scene type][scene][scan] -> stems

SPLITS = ("train", "val")
SCENE_TYPES = ("indoors", "outdoor")  # DIODE's folder names: one plural, one singular
KNOWN_GAP = "train/indoors/scene_00000/scan_00007"  # 181 images in diode_meta.json, and no normals of any


def diode_root(gt_dir: Path) -> Path | None:
    """The DIODE root above `gt_dir`: the folder that holds diode_meta.json, with `gt_dir` in its normals or depths."""
    folder = gt_dir.resolve()
    for parent in folder.parents:
        if (parent / "diode_meta.json").is_file() and folder.relative_to(parent).parts[0] in ("normals", "depths"):
            return parent
    return None


def sample_of(gt: Path) -> str:
    """The DIODE sample of a ground truth file: `split/scene_type/scene/scan/stem`."""
    stem = gt.stem.removesuffix("_normal").removesuffix("_depth")
    return "/".join((*gt.resolve().parts[-5:-1], stem))


def lacks_known_gap(normals: Path) -> bool:
    """True where a normals/ folder lacks all of KNOWN_GAP, as DIODE's own does."""
    return not any((normals / KNOWN_GAP).glob("*"))


def read_meta(root: Path) -> Meta:
    """diode_meta.json of a DIODE root. Raises InputError where it is missing or malformed."""
    path = root / "diode_meta.json"
    try:
        meta = json.loads(path.read_text())
        _names_in(meta)
        return meta
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; it belongs next to normals/ and depths/ (or use --list_from disk)"
        ) from None
    except (ValueError, AttributeError, TypeError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not DIODE's list of names ({reason}); move it away to have it made again") from None


def listed_samples(root: Path) -> set[str]:
    """Every sample that diode_meta.json lists: `split/scene_type/scene/scan/stem`. See `read_meta` for errors."""
    return set(_names_in(read_meta(root)))


def _names_in(meta: Meta) -> list[str]:
    return [
        "/".join((split, scene_type, scene, scan, stem))
        for split, scene_types in meta.items()
        for scene_type, scenes in scene_types.items()
        for scene, scans in scenes.items()
        for scan, stems in scans.items()
        for stem in stems
    ]


def check_trees(root: Path, pseudo_root: Path) -> None:
    """InputError where the folder of truth, DIODE's images next to it, or that of labels, is not there."""
    for folder, flag in ((root, "--train_data_dir"), (pseudo_root, "--pseudo_root")):
        check_folder(folder, f" (from {flag}); pass a folder that exists")


def check_label_root(root: Path, names: Iterable[str]) -> None:
    """InputError where the labels' tree begins one folder below `root`, in one of `names`, as in pseudo/normal."""
    try:
        below = [root / name for name in names if any((root / name / split).is_dir() for split in SPLITS)]
    except OSError:  # what may not be read is named where it is read
        return
    if below and not any((root / split).is_dir() for split in SPLITS):
        raise InputError(f"--pseudo_root={root}: no train/ or val/ in it; pass {' or '.join(map(str, below))}")
