"""Are labels in the convention that the training takes them for? Checked before a training, and by `check`.

A label in another tool's convention (OpenGL axes, BGR, far = white, disparity, linear colours) trains as well as any
other, and the LoRA's header then states a convention that its predictions do not have. Where there is ground truth it
contradicts such labels; some show it without any (`utils.metrics.convention_check`).
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dataloaders.base import PROBES, Maps
from utils.errors import InputError, warn
from utils.intrinsics import DEPTH, INTRINSICS, NORMAL, Intrinsic, depth_coded
from utils.maps.images import read_label
from utils.maps.label_record import record_above
from utils.metrics.convention_check import (
    DECODED,
    Evidence,
    Finding,
    evidence_of_label,
    findings_of_labels,
    frame_of,
)
from utils.metrics.placement_check import Placed, fit_of, in_pairs, placed_of_label, placement_findings, unrelated

SAMPLES = 16  # read at the start of a training: seconds
PLACES = {  # key of a finding on how labels lie -> what to do
    "placed": "make them anew of the images as they are shown (EXIF orientation applied, no flips)",
    "paired": "each has the name of another image: rename them, or make them anew",
    "unrelated": "look at a few: are they of {task}, each of the image of its name, and do they lie on it?",
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
    fit = fit_of(intrinsic, intrinsic.coding, intrinsic.depth_coding)
    found = placement_findings(places, fit, findings_of_labels(intrinsic, evidence))
    return found or unrelated(places, fit, intrinsic)


def evidence_of_item(dataset: Maps, index: int) -> tuple[Evidence, Placed | None]:
    """(how well other conventions would fit a label, and other places)."""
    item = dataset[index]
    label = item["target"].permute(1, 2, 0).numpy()
    valid = item["valid"][0].numpy()
    truth = item["gt"].permute(1, 2, 0).numpy() if dataset.measured and valid.any() else None
    known = valid if truth is not None else None
    return (
        evidence_of_label(dataset.intrinsic, label, truth, known),
        placed_of_label(dataset.intrinsic, label, truth, known),
    )


def known_disparity(finding: Finding, dataset: Maps) -> bool:
    """True if the finding is disparity and the labels' own record states it too."""
    record = record_above(dataset.label_path(dataset.stems[0]).parent)
    return finding.key[-1] == "disparity" and "in disparity" in str(record.get("conventions"))


def describe(finding: Finding, intrinsic: Intrinsic) -> str:
    """One line: what the labels are, by how much, and what to do."""
    return finding.text("the labels", _fix(finding, intrinsic))


def _fix(finding: Finding, intrinsic: Intrinsic) -> str:
    """How labels are put right."""
    key = finding.key
    if key[0] in PLACES:
        return PLACES[key[0]].format(task=intrinsic.name)
    if intrinsic.kind == "normals":
        frame = frame_of(finding)
        if frame is not None:
            return (
                f"their axes are those of {frame}: make them with pseudo_label.py --frame {frame}, or re-export them "
                "with x right, y down, z forward (or the ground truth has other axes: --gt_frame)"
            )
        if key == ("grey",):
            return "pass labels of normals (--pseudo_root), or train the script of what they are"
        return "re-export them as 255 (n / 2 + 0.5) in RGB order, n with x right, y down, z forward"
    if intrinsic.kind == "depth":
        if key == ("inverted",):
            return "re-export them with near = white (255 - grey), or make them with pseudo_label.py --predicts depth"
        if key == ("colours",):
            return "re-export the depth itself, grey, near = white"
        if key[1] == "depth":
            return f"pass --depth_coding {key[0]}"
        if key[1] == "disparity":
            return (
                "make labels linear in depth (pseudo_label.py with a depth teacher); a LoRA of disparity is scored "
                "with --align disparity"
            )
        return "re-export them linear in depth, near = white"
    if key == ("normals",):
        return "pass labels of " + intrinsic.name + " (--pseudo_root), or train the script of normals"
    if key[-1] == "bgr":
        return "re-export them in RGB order (cv2.imwrite takes BGR)"
    return "re-export them sRGB-coded once (or the ground truth is not what it is read as: .npy linear, .png sRGB)"


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
