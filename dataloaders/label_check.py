"""Are labels in the convention that the training takes them for? Checked before a training, and by `check`.

A label in another tool's convention (OpenGL axes, BGR, far = white, disparity, linear colours) trains as well as any
other, and the LoRA's header then states a convention that its predictions do not have. Where there is ground truth it
contradicts such labels; some show it without any (`utils.kinds.evidence`).
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dataloaders.base import PROBES, Maps
from dataloaders.diode import Diode
from dataloaders.folder import FolderMaps
from dataloaders.listing import Sample
from utils.errors import InputError, warn
from utils.image_io.images import read_label
from utils.intrinsics import DEPTH, INTRINSICS, NORMAL, Intrinsic, depth_coded
from utils.kinds.axes import DECODED
from utils.kinds.evidence import (
    Evidence,
    Finding,
    Placed,
    in_pairs,
    label_fit,
    placed_of_label,
    placement_findings,
    unrelated,
)
from utils.kinds.label_record import record_above

SAMPLES = 16  # read at the start of a training: seconds
SIDE = 256  # pixels of labels in `dataloaders check`
PLACES = {  # key of a finding on how labels lie -> what to do
    "placed": "make them again from the images as they are shown (EXIF orientation applied, no flips)",
    "paired": "each has the name of another image: rename them, or make them again",
    "unrelated": "look at a few: do they show {task}, of the image with the same name, in the same place?",
}
GREY = 3.5 / 255  # what rounding and JPEG leave between the channels of a grey label; shading has more


def check_labels(dataset: Maps, skip: bool) -> None:
    """Compare up to SAMPLES labels with their truth, in the first process alone; draws no random number.

    Raises InputError where the labels surely have another convention; warns where it is only likely.
    """
    several = os.environ.get("WORLD_SIZE", "1") != "1"  # a scheduler's RANK alone does not make it so
    if skip or (several and os.environ.get("RANK", "0") != "0"):
        return
    for finding in label_findings(dataset, in_pairs(len(dataset), SAMPLES)):
        text = f"{folder_of(dataset)}: {describe(finding, dataset.intrinsic)}"
        if finding.sure and not known_disparity(finding, dataset):
            raise InputError(f"{text}; --skip_label_check trains on them as they are")
        warn(text)


def folder_of(dataset: Maps) -> str:
    """The folder that holds the labels."""
    return os.path.commonpath([dataset.label_path(stem).parent for stem in dataset.stems])


def label_findings(dataset: Maps, indices: Iterable[int]) -> list[Finding]:
    """Findings from the labels of these samples, as the training would read them."""
    intrinsic = dataset.intrinsic
    evidence, places = zip(*(evidence_of_item(dataset, index) for index in indices), strict=True)
    found = placement_findings(places, label_fit(intrinsic), intrinsic.map_kind.label_findings(evidence))
    return found or unrelated(places, intrinsic)


def evidence_of_item(dataset: Maps, index: int) -> tuple[Evidence, Placed | None]:
    """(how well other conventions would fit a label, and other places)."""
    item = dataset[index]
    label = item["target"].permute(1, 2, 0).numpy()
    valid = item["valid"][0].numpy()
    truth = item["gt"].permute(1, 2, 0).numpy() if dataset.measured and valid.any() else None
    known = valid if truth is not None else None
    return (
        dataset.intrinsic.map_kind.label_evidence(label, truth, known),
        placed_of_label(dataset.intrinsic, label, truth, known),
    )


def known_disparity(finding: Finding, dataset: Maps) -> bool:
    """True if the finding is disparity and the labels' own record states it too."""
    record = record_above(dataset.label_path(dataset.stems[0]).parent)
    return finding.key[-1] == "disparity" and "in disparity" in str(record.get("conventions"))


def describe(finding: Finding, intrinsic: Intrinsic) -> str:
    """One line: what the labels are, by how much, and what to do."""
    advice = PLACES.get(finding.key[0], "").format(task=intrinsic.name)
    return finding.text("the labels", advice or intrinsic.map_kind.label_fix(finding))


def intrinsic_of(labels: list[Path], task: str | None) -> Intrinsic | None:
    """The intrinsic of labels: `task`, else what their provenance.json states, else what they show; None: they do not.

    Grey ones are taken for depth, coloured ones whose vectors have unit length, however encoded, for normals.
    """
    record = record_above(labels[0].parent)
    name = task or record.get("task")
    if name == DEPTH.name:
        return depth_coded(str(record.get("depth_coding", "linear")))
    if name in INTRINSICS:
        return INTRINSICS[name]
    maps = [np.asarray(read_label(path)) / 127.5 - 1 for path in labels[:PROBES]]
    if np.median([np.mean(np.ptp(one / 2 + 0.5, axis=2) > GREY) for one in maps]) < 0.01:
        return DEPTH
    off = [min(np.abs(np.linalg.norm(undo(one), axis=2) - 1).mean() for undo in DECODED.values()) for one in maps]
    return NORMAL if np.median(off) < 0.08 else None


def findings_of_files(
    files: list[tuple[str, dict[str, Path]]], count: int, args: argparse.Namespace, notes: list[str]
) -> list[str]:
    """Compare up to `count` labels of (name, role -> file) with their truth, for `dataloaders check`; one line each.

    args: the flags of that command. notes: what was compared, and findings for which training has a flag.
    """
    files = [files[index] for index in in_pairs(len(files), count)]
    intrinsic = intrinsic_of([paths["label"] for _, paths in files], args.task)
    if intrinsic is None:
        notes.append("the labels were not compared with ground truth: pass --task to name their intrinsic")
        return []
    dataset = labelled(files, intrinsic, args)
    if not len(dataset):
        notes.append("the labels were not compared with ground truth: none of them has any")
        return []
    if not dataset.measured:
        notes.append(f"labels taken for {intrinsic.name}: there is no ground truth to compare them with")
    else:
        notes.append(f"labels taken for {intrinsic.name}: {len(dataset)} compared with ground truth")
    found = []
    for finding in label_findings(dataset, range(len(dataset))):
        text = f"{folder_of(dataset)}: {describe(finding, intrinsic)}"
        if known_disparity(finding, dataset) or finding.key[1:] == ("depth",):  # training has a flag for it
            notes.append(text)
        else:
            found.append(text)
    return found


def labelled(files: list[tuple[str, dict[str, Path]]], intrinsic: Intrinsic, args: argparse.Namespace) -> Maps:
    """The samples as a training of `intrinsic` would read them, at SIDE pixels."""
    if args.root is None and args.dataset in ("folder", "manifest"):
        own = [Sample(name, **{role: str(path) for role, path in each.items()}) for name, each in files]
        measured = any(sample.gt is not None for sample in own)
        return FolderMaps(own, intrinsic, measured, args.gt_frame or "opencv", SIDE)
    root = args.root or args.train_data_dir.parent
    truth = root / intrinsic.truth_folder
    truth = truth if truth.is_dir() else root / "depths"
    dataset = Diode(intrinsic, truth, args.pseudo_root, "train", resolution=SIDE, list_from="disk", skip_missing=True)
    dataset.stems = [name for name, _ in files]
    if dataset.measured:  # one scan of DIODE has no normals
        dataset.stems = [stem for stem in dataset.stems if Path(dataset.truth_name(stem)).is_file()]
    return dataset
