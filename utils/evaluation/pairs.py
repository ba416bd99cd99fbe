"""The files that evaluate.py's flags name: predictions paired with ground truth, masks, images and judgements."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError, note
from utils.image_io import diode_names
from utils.image_io.diode_names import SCENE_TYPES, sample_of
from utils.image_io.files import (
    MASK_ENDINGS,
    MASK_FOLDERS,
    MASK_TAILS,
    PICTURES,
    SIXTEEN,
    masks_next_to,
    skipped_line,
    stem_of_mask,
    the_mask,
)
from utils.intrinsics import INTRINSICS

FORMATS = (".npy", ".exr", f"{SIXTEEN}.png", ".png")  # the most precise first; it is read where several exist
NOT_READ = (".npz", ".tif", ".tiff", ".hdr", ".pfm", ".mat", ".h5", ".hdf5", ".pt", ".jpg", ".jpeg")  # images last


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
    Raises InputError for a missing folder, or one without maps.
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
    unread = Counter(path.suffix.lower() for path in files if path.suffix.lower() in NOT_READ[:-2])
    if passed := skipped_line(unread):
        note(f"{what}: {passed}; save them as .npy")
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
    refuse_same_stem(truths, predictions)
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


def refuse_same_stem(truths: Mapping[str, Path], predictions: Mapping[str, Path]) -> None:
    """InputError for a truth `x` without prediction where there are predictions `x.jpg` and `x.png`, whose names kept
    the endings because both images were predicted (`utils.inference.inputs.output_names`).
    """
    of_stem: dict[str, list[str]] = {}
    for name in predictions:
        if name.lower().endswith(PICTURES):
            of_stem.setdefault(name.rpartition(".")[0], []).append(name)
    for name in sorted(truths.keys() & of_stem.keys() - predictions.keys()):
        claims = " and ".join(str(predictions[one]) for one in of_stem[name])
        raise InputError(
            f"{truths[name]}: {claims} share its stem; give it the full name of its image "
            f"({Path(of_stem[name][0]).name}{truths[name].suffix}), or predict that image alone"
        )


def find_pairs(args: argparse.Namespace, notes: list[str]) -> list[Pair]:
    """The images to score. Adds to `notes` what was chosen, passed over or found twice; lists what is missing."""
    if args.gt_dir is None:
        found, doubles = find_maps(args.pred_dir, args.task, "--pred_dir", args.by_stem)
        pairs = [Pair(name, path, None) for name, path in sorted(found.items())]
        several, without_gt = {"predictions": doubles}, 0
    else:
        root = diode_names.diode_root(args.gt_dir)
        listed = diode_names.listed_samples(root) if root else None
        if args.diode_set and not root:
            raise InputError(f"--diode_set: no diode_meta.json next to the normals or depths folder {args.gt_dir}")
        wanted = listed if args.diode_set == "meta" else None
        pairs, several, without_gt = pair_maps(
            args.task, args.pred_dir, args.gt_dir, args.mask_dir, wanted, args.by_stem
        )
        refuse_whole_tree(pairs, args)
        if listed is not None:
            inside = sum(pair.gt is not None and diode_names.sample_of(pair.gt) in listed for pair in pairs)
            source = "diode_meta.json" if args.diode_set == "meta" else "all on disk"
            notes.append(f"DIODE: {len(pairs)} images asked for ({source}); diode_meta.json lists {inside} of them")
            missing = sum(pair.prediction is None for pair in pairs)
            if missing and not args.allow_missing and inside < len(pairs):
                note(f"{missing} have no prediction: --diode_set meta asks for the listed ones only")
    for what, counts in several.items():
        for formats, count in counts.items():
            words = f"{', '.join(formats[:-1])} and {formats[-1]}"
            notes.append(f"{count} {what} exist as {words}: scored the {formats[0]}")
    if without_gt:
        notes.append(f"{without_gt} predictions have no ground truth and were not scored")
    notes += mask_notes(pairs, args)
    if INTRINSICS[args.task].map_kind.needs_mask(args.protocol):
        without = [str(pair.gt) for pair in pairs if pair.mask is None]
        if without:
            raise InputError(
                f"--protocol {args.protocol} needs <stem>_depth_mask.npy next to the ground truth or in --mask_dir; "
                f"{len(without)} have none",
                without,
            )
    return pairs


def mask_notes(pairs: list[Pair], args: argparse.Namespace) -> list[str]:
    """Which masks are used, where that is not the same for all images; and which folder of masks is not."""
    masked = [pair for pair in pairs if pair.mask is not None]
    if masked:
        files = f"e.g. {masked[0].mask}" if len(masked) > 1 else f"{masked[0].mask}"
        rest = "" if len(masked) == len(pairs) else f"; the other {len(pairs) - len(masked)} have no mask"
        return [f"{len(masked)} of {len(pairs)} images have a mask ({files}){rest}"]
    for name in MASK_FOLDERS if args.gt_dir else ():
        folder = args.gt_dir.resolve().parent / name
        if folder.is_dir() and any(find_mask(pair.name, pair.gt, folder, args.task, None) for pair in pairs):
            return [f"{folder} holds masks of these images and is not used: --mask_dir {folder} uses them"]
    return []


def refuse_whole_tree(pairs: list[Pair], args: argparse.Namespace) -> None:
    """Raise InputError where --gt_dir holds train/ and val/, and no image of one of them has a prediction."""
    splits = [split for split in ("train", "val") if (args.gt_dir / split).is_dir()]
    for split in splits if len(splits) == 2 and not args.allow_missing else ():
        inside = [pair for pair in pairs if pair.gt and pair.gt.relative_to(args.gt_dir).parts[0] == split]
        if inside and all(pair.prediction is None for pair in inside):
            other = args.gt_dir / next(name for name in splits if name != split)
            raise InputError(
                f"--gt_dir {args.gt_dir} holds train/ and val/, and none of the {len(inside)} images of {split}/ has "
                f"a prediction: pass --gt_dir {other}"
            )


def find_images(pairs: list[Pair], args: argparse.Namespace) -> dict[str, Path]:
    """Name of a pair -> its image: of this name below --image_dir, or DIODE's own; only those that are there."""
    root = diode_names.diode_root(args.gt_dir) if args.gt_dir else None
    found: dict[str, Path] = {}
    for pair in pairs:
        if args.image_dir:
            places = [args.image_dir / f"{pair.name}{ending}" for ending in ("", *PICTURES)]
        else:
            places = [root / "depths" / f"{diode_names.sample_of(pair.gt)}.png"] if root and pair.gt else []
        if here := next((path for path in places if path.is_file()), None):
            found[pair.name] = here
    return found


def find_judgements(path: Path, pairs: list[Pair]) -> dict[str, Path]:
    """{name of the pair: its judgement file}; a single file serves a single prediction."""
    if path.is_dir():
        return {pair.name: found for pair in pairs if (found := path / f"{pair.name}.json").is_file()}
    if len(pairs) == 1:
        return {pairs[0].name: path}
    same = [pair.name for pair in pairs if pair.name.rsplit("/", 1)[-1] == path.stem]
    if len(same) != 1:
        raise InputError(f"--whdr {path} is one file for {len(pairs)} predictions: give a folder of <name>.json")
    return {same[0]: path}
