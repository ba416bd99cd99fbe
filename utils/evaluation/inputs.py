"""What evaluate.py's flags name: pairs of prediction and truth, their images, and judgements."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.errors import InputError, note
from utils.evaluation import pairing
from utils.evaluation.pairing import Pair
from utils.intrinsics import INTRINSICS
from utils.maps import diode_names
from utils.maps.files import PICTURES
from utils.maps.mask_files import MASK_FOLDERS
from utils.metrics.protocols import DEPTH_RULES


def find_pairs(args: argparse.Namespace, notes: list[str]) -> list[Pair]:
    """The images to score. Adds to `notes` what was chosen, passed over or found twice; lists what is missing."""
    if args.gt_dir is None:
        found, doubles = pairing.find_maps(args.pred_dir, args.task, "--pred_dir", args.by_stem)
        pairs = [Pair(name, path, None) for name, path in sorted(found.items())]
        several, without_gt = {"predictions": doubles}, 0
    else:
        root = diode_names.diode_root(args.gt_dir)
        listed = diode_names.listed_samples(root) if root else None
        if args.diode_set and not root:
            raise InputError(f"--diode_set: no diode_meta.json beside the normals or depths folder {args.gt_dir}")
        wanted = listed if args.diode_set == "meta" else None
        pairs, several, without_gt = pairing.pair_maps(
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
    if INTRINSICS[args.task].kind == "depth" and DEPTH_RULES[args.protocol].needs_mask:
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
        if folder.is_dir() and any(pairing.find_mask(pair.name, pair.gt, folder, args.task, None) for pair in pairs):
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
            places = [args.image_dir / f"{pair.name}{ending}" for ending in PICTURES]
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
