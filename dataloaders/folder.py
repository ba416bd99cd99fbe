"""Your own pictures and labels as a data set of any task; `dataloaders.listing` says how their files are found.

Ground truth (gt/): normals as vectors (.npy) or 8-bit pictures, depth .npy in metres, albedo and shading linear .npy
or sRGB-coded .png. Masks: not zero = valid. Where a sample has no truth it is not scored.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dataloaders.base import Maps, fixed_samples
from dataloaders.listing import Sample, complete, split_samples
from utils.errors import InputError
from utils.maps.conventions import convert_frame, to_linear, unit_vectors
from utils.maps.files import read_colour, read_mask, read_metric_depth, read_normals


class OwnMaps(Maps):
    """Some of your samples, decoded for one task.

    Args: task: normal, depth, albedo or shading. measured: whether any sample of the whole data has truth; one that
    has none is then not scored. frame: the axes of true normals (utils/maps/conventions.py). Others: see `Diode`.
    """

    def __init__(
        self,
        samples: list[Sample],
        task: str,
        measured: bool,
        frame: str = "opencv",
        resolution: int = 512,
        center_crop: bool = True,
        seed: int = 0,
        num_images: int | None = None,
        first: int | None = None,
    ):
        super().__init__(resolution, center_crop, seed)
        self.task, self.frame, self._measured = task, frame, measured
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

    def ground_truth(self, stem: str) -> tuple[np.ndarray, np.ndarray] | None:
        sample = self.samples[stem]
        if sample.gt is None:
            return None
        values, valid = _read(_READERS[self.task], sample.gt)
        if self.task == "normal":
            values = convert_frame(values, self.frame)
        if sample.mask is not None:
            mask = _read(read_mask, sample.mask)
            if mask.shape != valid.shape:
                raise InputError(f"{sample.mask}: mask of shape {mask.shape} beside ground truth of {valid.shape}")
            valid = valid & mask
        return np.where(valid[..., None], values, 0), valid


def open_own(
    samples: list[Sample], task: str, fraction: float, seed: int, skip_missing: bool = False, **options
) -> tuple[OwnMaps, dict[str, list[dict]]]:
    """Training set, and four fixed samples each of it and of the held-out ones ("train", "val").

    options: frame, resolution, center_crop, num_images, first of `OwnMaps`.
    """
    notes: list[str] = []
    samples = complete(samples, skip_missing, notes)
    parts = split_samples(samples, fraction, seed)
    with_truth = sum(sample.gt is not None for sample in samples)
    train = OwnMaps(parts["train"], task, with_truth > 0, seed=seed, **options)
    fixed = {"frame": train.frame, "resolution": train.resolution, "seed": seed}
    val = OwnMaps(parts["val"], task, with_truth > 0, **fixed)
    notes.append(f"{len(parts['train'])} samples to train on, {len(val)} held out; {with_truth} have ground truth")
    if not with_truth:
        scores = "nothing is scored" if task == "depth" else "val/<split>/label_* compare drawings with LABELS"
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
    values = to_linear(values) if path.suffix == ".png" else values
    return values, np.isfinite(values).all(axis=2)


_READERS = {"normal": _normals, "depth": _depth, "albedo": _colour, "shading": _colour}
