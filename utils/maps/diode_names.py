"""How DIODE names its files and lists its samples: the one reader of diode_meta.json."""

import json
from pathlib import Path

SCENE_TYPES = ("indoors", "outdoor")  # DIODE's folder names: one plural, one singular


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


def listed_samples(root: Path) -> set[str]:
    """Every sample that diode_meta.json (split, scene type, scene, scan) lists; ValueError if it is malformed."""
    path = root / "diode_meta.json"
    try:
        return {
            "/".join((split, scene_type, scene, scan, stem))
            for split, scene_types in json.loads(path.read_text()).items()
            for scene_type, scenes in scene_types.items()
            for scene, scans in scenes.items()
            for scan, stems in scans.items()
            for stem in stems
        }
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not DIODE's list of samples: {error}") from error
