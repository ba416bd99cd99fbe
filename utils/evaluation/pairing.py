"""Finds which prediction belongs to which ground truth and mask."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError
from utils.intrinsics import INTRINSICS
from utils.maps.diode_names import SCENE_TYPES, sample_of
from utils.maps.files import SIXTEEN
from utils.maps.mask_files import MASK_ENDINGS, MASK_FOLDERS, MASK_TAILS, masks_next_to, stem_of_mask, the_mask

FORMATS = (".npy", ".exr", f"{SIXTEEN}.png", ".png")  # the most precise first; it is read where several exist
NOT_READ = (".npz", ".tif", ".tiff", ".jpg", ".jpeg", ".hdr", ".pfm", ".mat", ".h5", ".hdf5", ".pt")


class Pair(NamedTuple):
    """The files of one image. name: relative path without suffixes; prediction None = there is none."""

    name: str
    prediction: Path | None
    gt: Path | None
    mask: Path | None = None
    scene_type: str | None = None


Formats = tuple[str, ...]  # endings of one map's files, the one that is read first


def find_maps(folder: Path, task: str, what: str, by_stem: bool = False) -> tuple[dict[str, Path], Counter[Formats]]:
    """({name: file} of the task's maps under `folder`, how many names exist in which several formats).

    name: path relative to `folder`, in posix form, without `_<task>`, `_pred` and `_16bit`. Masks and maps of other
    tasks are passed over, and so is a bare `x.png` next to `x_depth.npy` when depth is not the task: that is the
    photograph. Of several files with one name the most explicit wins: `_<task>` before none, then by FORMATS.
    by_stem: names are the stems alone, without folders.
    Raises InputError when there is no folder or no map in it.
    """
    if not folder.is_dir():
        raise InputError(f"{what}: no folder {folder}")
    ranked: dict[str, list[tuple[bool, int, Path]]] = {}
    elsewhere = set()  # names that maps of other tasks go by
    files = sorted(folder.rglob("*"))
    there = {path.with_suffix("") for path in files}
    for path in files:
        ending = ending_of(path)
        if ending is None or _is_mask(path, folder, there):
            continue
        stem = path.stem.removesuffix(SIXTEEN).removesuffix("_pred")
        other = next((other for other in INTRINSICS if other != task and stem.endswith(f"_{other}")), None)
        if other:
            bare = stem.removesuffix(f"_{other}")
            elsewhere.add(bare if by_stem else (path.parent / bare).relative_to(folder).as_posix())
            continue
        bare = stem.removesuffix(f"_{task}").removesuffix("_pred")
        name = bare if by_stem else (path.parent / bare).relative_to(folder).as_posix()
        ranked.setdefault(name, []).append((bare == stem, FORMATS.index(ending), path))
    ranked = {name: found for name, found in ranked.items() if name not in elsewhere or not all(c[0] for c in found)}
    if not ranked:
        others = Counter(path.suffix.lower() for path in files if path.suffix.lower() in NOT_READ)
        advice = "".join(f"; {count} {ending} files are there: save them as .npy" for ending, count in others.items())
        raise InputError(f"{what}: no .npy or .png {task} map under {folder}, and no .exr{advice}")
    doubles: Counter[Formats] = Counter()
    chosen = {}
    for name, candidates in ranked.items():
        candidates.sort()
        best, first, chosen[name] = candidates[0]
        same = [c for c in candidates if c[:2] == (best, first)]
        if len(same) > 1:
            raise InputError(f"{what}: {' and '.join(str(c[2]) for c in same)} both claim the name {name}: remove one")
        if len(formats := dict.fromkeys(FORMATS[c[1]] for c in candidates if c[0] == best)) > 1:
            doubles[tuple(formats)] += 1
    return chosen, doubles


def ending_of(path: Path) -> str | None:
    """The format of a map's file, one of FORMATS; None for other files."""
    ending = path.suffix.lower()
    if ending == ".png" and path.stem.endswith(SIXTEEN):
        return f"{SIXTEEN}.png"
    return ending if ending in FORMATS else None


def _is_mask(path: Path, folder: Path, there: set[Path]) -> bool:
    """True for a file below `folder` that is a mask by its name or place. there: all files, without their endings."""
    bare = stem_of_mask(path.stem)
    if bare is None:
        return any(part in MASK_FOLDERS for part in path.parent.relative_to(folder).parts)
    return path.stem.endswith("_mask") or any(
        path.with_name(f"{bare}{tail}") in there for tail in ("", *(f"_{task}" for task in INTRINSICS))
    )


def find_mask(name: str, gt: Path | None, folder: Path | None, task: str, gt_dir: Path | None) -> Path | None:
    """The mask of one image: in `folder` if given, else next to its ground truth (`masks_next_to`), else None.

    Raises InputError where there are two different ones.
    """
    stem = name.rsplit("/", 1)[-1]
    if folder is not None:
        tails = ("", *MASK_TAILS, *(f"_{other}" for other in INTRINSICS), f"_{task}_mask", f"_{task}_valid")
        candidates = [folder / f"{name}{tail}{suffix}" for tail in tails for suffix in MASK_ENDINGS]
        return the_mask([path for path in candidates if path.is_file()])
    if gt is None:
        return None
    return the_mask(masks_next_to(gt, (stem, gt.stem.removesuffix(SIXTEEN), f"{stem}_{task}"), gt_dir))


def pair_maps(
    task: str,
    pred_dir: Path,
    gt_dir: Path,
    mask_dir: Path | None = None,
    listed: set[str] | None = None,
    by_stem: bool = False,
) -> tuple[list[Pair], dict[str, Counter[Formats]], int]:
    """One Pair for each ground truth, sorted by name; what exists in several formats, by its word in a note; and how
    many predictions have no ground truth.

    listed: if given, only these DIODE samples (see `listed_samples`). by_stem: pair by file stem, whatever the folder.
    Raises InputError for empty folders, for masks missing from `mask_dir`, or when no name matches at all.
    """
    predictions, doubles = find_maps(pred_dir, task, "--pred_dir", by_stem)
    truths, truth_doubles = find_maps(gt_dir, task, "--gt_dir", by_stem)
    if listed is not None:
        truths = {name: path for name, path in truths.items() if sample_of(path) in listed}
        if not truths:
            raise InputError(f"--diode_set meta: diode_meta.json lists none of the files under {gt_dir}")
    if not truths.keys() & predictions.keys():
        raise InputError(
            f"no prediction pairs with a ground truth: for example {min(predictions)!r} under {pred_dir} and "
            f"{min(truths)!r} under {gt_dir}; relative paths must agree, or with --by_stem the stems alone"
        )
    pairs = []
    for name, gt in sorted(truths.items()):
        scene = next((part for part in reversed(gt.resolve().parts) if part in SCENE_TYPES), None)
        pairs.append(Pair(name, predictions.get(name), gt, find_mask(name, gt, mask_dir, task, gt_dir), scene))
    without = [pair.name for pair in pairs if mask_dir is not None and pair.mask is None]
    if without:
        raise InputError(f"{len(without)} masks missing from {mask_dir}, e.g. {without[0]}", without)
    several = {"predictions": doubles, "ground truths": truth_doubles}
    return pairs, several, len(predictions.keys() - truths.keys())
