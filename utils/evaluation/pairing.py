"""Finds which prediction belongs to which ground truth and mask."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError
from utils.intrinsics import INTRINSICS
from utils.maps.diode_names import SCENE_TYPES, sample_of
from utils.maps.files import SIXTEEN

MASK_SUFFIXES = ("_depth_mask", "_mask")


class Pair(NamedTuple):
    """The files of one image. name: relative path without suffixes; prediction None = there is none."""

    name: str
    prediction: Path | None
    gt: Path | None
    mask: Path | None = None
    scene_type: str | None = None


def find_maps(folder: Path, task: str, what: str, by_stem: bool = False) -> tuple[dict[str, Path], int]:
    """({name: file} of the task's maps under `folder`, how many names had both .npy and .png).

    name: path relative to `folder`, in posix form, without `_<task>` and `_pred`. Masks, maps of other tasks and
    16-bit copies are passed over, and so is a bare `x.png` beside `x_depth.npy` when depth is not the task: that is
    the photograph. Of several files with one name the most explicit wins: `_<task>` before none, then .npy before
    .png.
    by_stem: names are the stems alone, without folders.
    Raises InputError when there is no folder or no map in it.
    """
    if not folder.is_dir():
        raise InputError(f"{what}: no folder {folder}")
    ranked: dict[str, list[tuple[bool, bool, Path]]] = {}
    elsewhere = set()  # names that maps of other tasks go by
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".npy", ".png") or path.stem.endswith((*MASK_SUFFIXES, SIXTEEN)):
            continue
        stem = path.stem.removesuffix("_pred")
        other = next((other for other in INTRINSICS if other != task and stem.endswith(f"_{other}")), None)
        if other:
            bare = stem.removesuffix(f"_{other}")
            elsewhere.add(bare if by_stem else (path.parent / bare).relative_to(folder).as_posix())
            continue
        bare = stem.removesuffix(f"_{task}").removesuffix("_pred")
        name = bare if by_stem else (path.parent / bare).relative_to(folder).as_posix()
        ranked.setdefault(name, []).append((bare == stem, path.suffix == ".png", path))
    ranked = {name: found for name, found in ranked.items() if name not in elsewhere or not all(c[0] for c in found)}
    if not ranked:
        raise InputError(f"{what}: no .npy or .png {task} map under {folder}")
    doubles = 0
    chosen = {}
    for name, candidates in ranked.items():
        candidates.sort()
        best, png, chosen[name] = candidates[0]
        same = [c for c in candidates if c[:2] == (best, png)]
        if len(same) > 1:
            raise InputError(f"{what}: {' and '.join(str(c[2]) for c in same)} both claim the name {name}: remove one")
        doubles += not png and any(c[1] and c[0] == best for c in candidates)
    return chosen, doubles


def find_mask(name: str, gt: Path | None, folder: Path | None) -> Path | None:
    """The mask of one image: in `folder` if given, else `<stem>_depth_mask.npy` beside its ground truth, else None."""
    if folder is not None:
        tails = ("", *MASK_SUFFIXES, *(f"_{task}" for task in INTRINSICS))
        candidates = [folder / f"{name}{tail}{suffix}" for tail in tails for suffix in (".npy", ".png")]
    elif gt is not None:
        candidates = [gt.with_name(f"{name.rsplit('/', 1)[-1]}_depth_mask.npy")]
    else:
        candidates = []
    return next((path for path in candidates if path.is_file()), None)


def pair_maps(
    task: str,
    pred_dir: Path,
    gt_dir: Path,
    mask_dir: Path | None = None,
    listed: set[str] | None = None,
    by_stem: bool = False,
) -> tuple[list[Pair], dict[str, int]]:
    """One Pair for each ground truth, sorted by name, and counts of what was passed over.

    listed: if given, only these DIODE samples (see `listed_samples`). by_stem: pair by file stem, whatever the folder.
    Raises InputError for empty folders, for masks missing from `mask_dir`, or when no name matches at all.
    """
    predictions, doubles = find_maps(pred_dir, task, "--pred_dir", by_stem)
    truths, _ = find_maps(gt_dir, task, "--gt_dir", by_stem)
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
        pairs.append(Pair(name, predictions.get(name), gt, find_mask(name, gt, mask_dir), scene))
    without = [pair.name for pair in pairs if mask_dir is not None and pair.mask is None]
    if without:
        raise InputError(f"{len(without)} masks missing from {mask_dir}, e.g. {without[0]}", without)
    counts = {"npy_preferred_over_png": doubles, "predictions_without_gt": len(predictions.keys() - truths.keys())}
    return pairs, counts
