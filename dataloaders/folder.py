"""Your own images and labels as a data set of any intrinsic; `dataloaders.listing` finds their files.

Ground truth (gt/): normals as vectors (floats) or encoded (8 or 16 bits), depth in metres (floats), albedo and shading
linear (floats) or sRGB-coded (8 or 16 bits); .npy, .exr or .png. Masks: not zero = valid. A sample without
truth is not scored.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.base import Maps, fixed_samples
from dataloaders.listing import Sample, complete, split_samples, with_mask
from utils.errors import warn
from utils.image_io.files import read_mask_named
from utils.intrinsics import DEPTH, NORMAL, Intrinsic
from utils.kinds.depth import FARTHEST_MEDIAN
from utils.kinds.label_record import record_above


class FolderMaps(Maps):
    """Some of your samples, decoded for one intrinsic.

    Args: measured: whether any sample of the whole data has truth; one without it is
    then not scored. frame: the axes of true normals (utils/kinds/frames.py). masked: items have a
    mask: where there is truth, inside the sample's mask if it has one; without truth, that mask. Others: see `Diode`.
    """

    def __init__(
        self,
        samples: list[Sample],
        intrinsic: Intrinsic,
        measured: bool,
        frame: str = "opencv",
        resolution: int = 512,
        center_crop: bool = True,
        seed: int = 0,
        num_images: int | None = None,
        first: int | None = None,
        masked: bool = False,
        whole: bool = False,
    ):
        super().__init__(intrinsic, resolution, center_crop, seed, masked, whole)
        self.frame, self._measured = frame, measured
        self.samples = {sample.stem: sample for sample in samples}
        self.keep(sorted(self.samples), num_images, first)

    @property
    def measured(self) -> bool:
        return self._measured

    @property
    def trained_on(self) -> str:
        """By the records that `dataloaders prepare` writes: of each folder of images the nearest above."""
        found: dict[str, None] = {}
        records: dict[str, dict] = {}
        for sample in (self.samples[stem] for stem in self.stems):
            folder = sample.rgb.rpartition(os.sep)[0]
            if folder not in records:
                records[folder] = record_above(Path(folder))
            name, split = records[folder].get("set"), records[folder].get("splits") == "published"
            part = sample.split or next((part for part in sample.stem.split("/") if part in ("train", "test")), "")
            found |= {f"{name} {part if split else ''}".strip(): None} if name else {}
        return ",".join(found)

    def rgb_path(self, stem: str) -> Path:
        return Path(self.samples[stem].rgb)

    def label_path(self, stem: str) -> Path:
        return Path(self.samples[stem].label)

    def truth_name(self, stem: str) -> str:
        return str(self.samples[stem].gt)

    def mask(self, stem: str) -> np.ndarray | None:
        sample = self.samples[stem]
        return None if sample.gt is not None or sample.mask is None else read_mask_named(Path(sample.mask))

    def mask_paths(self, stem: str) -> list[Path]:
        sample = self.samples[stem]
        return [Path(path) for path in (sample.gt, sample.mask) if path is not None]

    def ground_truth(self, stem: str) -> tuple[np.ndarray, np.ndarray] | None:
        sample = self.samples[stem]
        if sample.gt is None:
            return None
        mask = None if sample.mask is None else Path(sample.mask)
        return self.intrinsic.map_kind.read_own(Path(sample.gt), mask, self.frame)


def _normals(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One file of your own true normals, as a training reads it: unit vectors (H,W,3), known (H,W)."""
    return NORMAL.map_kind.read_own(path, None, "opencv")


def _depth(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One file of your own true depth, as a training reads it: metres (H,W,1), known (H,W)."""
    return DEPTH.map_kind.read_own(path, None, "opencv")


def open_folder(
    samples: list[Sample], intrinsic: Intrinsic, fraction: float, seed: int, skip_missing: bool = False, **options: Any
) -> tuple[FolderMaps, dict[str, list[dict]]]:
    """Training set, and four fixed samples each of it and of the held-out ones ("train", "val").

    options: frame, resolution, center_crop, num_images, first, masked, whole of `FolderMaps`.
    """
    notes: list[str] = []
    samples = complete(samples, skip_missing, notes)
    if options.get("masked"):
        samples = with_mask(samples, skip_missing, notes)
    parts = split_samples(samples, fraction, seed)
    with_truth = sum(sample.gt is not None for sample in samples)
    train = FolderMaps(parts["train"], intrinsic, with_truth > 0, seed=seed, **options)
    val = FolderMaps(
        parts["val"], intrinsic, with_truth > 0, frame=train.frame, resolution=train.resolution, seed=seed,
        whole=train.whole,
    )  # fmt: skip
    own = ", as the data are split (--val_fraction is not read)" if samples and samples[0].split else ""
    notes.append(
        f"{len(parts['train'])} samples to train on, {len(val)} held out{own}; {with_truth} have ground truth"
    )
    if not with_truth:
        labels = "val/<split>/label_* compare predictions with LABELS"
        scores = labels if intrinsic.map_kind.label_is_truth else "nothing is scored"
        notes.append(f"no ground truth: {scores}; gt/<same name>.npy (or a manifest's gt) would be used")
    train.notes = notes
    samples_of = {name: fixed_samples(part, seed) for name, part in (("train", train), ("val", val)) if len(part)}
    if not intrinsic.map_kind.label_is_truth and train.measured:
        _warn_of_millimetres([item for items in samples_of.values() for item in items])
    return train, samples_of


def _warn_of_millimetres(items: list[dict]) -> None:
    medians = [item["gt"][item["valid"]].median().item() for item in items if item["valid"].any()]
    if medians and np.median(medians) > FARTHEST_MEDIAN:
        warn(f"gt/: the median of the true depth is {np.median(medians):.4g} m; divide millimetres by 1000")
