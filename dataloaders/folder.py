"""Your own images and labels as a data set of any intrinsic; `dataloaders.listing` says how their files are found.

Ground truth (gt/): normals as vectors (.npy) or 8-bit pictures, depth .npy in metres, albedo and shading linear .npy
or sRGB-coded .png. Masks: not zero = valid. Where a sample has no truth it is not scored.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dataloaders.base import Maps, fixed_samples
from dataloaders.listing import Sample, complete, split_samples, with_mask
from utils.errors import InputError
from utils.intrinsics import Intrinsic
from utils.maps.conventions import convert_frame, to_linear, unit_vectors
from utils.maps.files import read_colour, read_mask, read_metric_depth, read_normals


class FolderMaps(Maps):
    """Some of your samples, decoded for one intrinsic.

    Args: measured: whether any sample of the whole data has truth; one that
    has none is then not scored. frame: the axes of true normals (utils/maps/conventions.py). masked: items have a
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

    def rgb_path(self, stem: str) -> Path:
        return self.samples[stem].rgb

    def label_path(self, stem: str) -> Path:
        return self.samples[stem].label

    def truth_name(self, stem: str) -> str:
        return str(self.samples[stem].gt)

    def mask(self, stem: str) -> np.ndarray | None:
        sample = self.samples[stem]
        return None if sample.gt is not None or sample.mask is None else _read(read_mask, sample.mask)

    def mask_paths(self, stem: str) -> list[Path]:
        sample = self.samples[stem]
        return [path for path in (sample.gt, sample.mask) if path is not None]

    def ground_truth(self, stem: str) -> tuple[np.ndarray, np.ndarray] | None:
        sample = self.samples[stem]
        if sample.gt is None:
            return None
        readers = {"normals": _normals, "depth": _depth, "colour": _colour}
        values, valid = _read(readers[self.intrinsic.kind], sample.gt)
        if self.intrinsic.kind == "normals":
            values = convert_frame(values, self.frame)
        elif sample.gt.suffix == ".png" and self.intrinsic.coding == "srgb":
            values = to_linear(values)
        if sample.mask is not None:
            mask = _read(read_mask, sample.mask)
            if mask.shape != valid.shape:
                raise InputError(f"{sample.mask}: mask of shape {mask.shape} beside ground truth of {valid.shape}")
            valid = valid & mask
        return np.where(valid[..., None], values, 0), valid


def open_folder(
    samples: list[Sample], intrinsic: Intrinsic, fraction: float, seed: int, skip_missing: bool = False, **options
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
        scores = "nothing is scored" if intrinsic.kind == "depth" else labels
        notes.append(f"no ground truth: {scores}; gt/<same name>.npy (or a manifest's gt) would be used")
    train.notes = notes
    return train, {name: fixed_samples(part, 4, seed) for name, part in (("train", train), ("val", val)) if len(part)}


def _read(reader: Callable, path: Path):
    """reader(path), its ValueError turned into an InputError with the file's name."""
    try:
        return reader(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _normals(path: Path) -> tuple[np.ndarray, np.ndarray]:
    values, valid = read_normals(path)
    return np.where(valid[..., None], unit_vectors(values), 0), valid


def _depth(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if path.suffix != ".npy":
        raise ValueError("ground truth depth is read from .npy in metres only")
    values = read_metric_depth(path, None)
    return values[..., None], np.isfinite(values) & (values > 0)


def _colour(path: Path) -> tuple[np.ndarray, np.ndarray]:
    values = read_colour(path)
    values = np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values
    return values, np.isfinite(values).all(axis=2)
