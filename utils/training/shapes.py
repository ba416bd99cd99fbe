"""Whole pictures by their shape, for the latent cache, which keeps latents of one shape in a file."""

from pathlib import Path

from torch.utils.data import Dataset

from utils.training.batches import buckets_of
from utils.training.training_set import TrainingSet


class OneShape:
    """The samples `indices` of a training set, all of one shape: what the latent cache needs of a training set."""

    def __init__(self, train_set: TrainingSet, indices: list[int]):
        self.train_set, self.indices = train_set, indices
        self.stems = [train_set.stems[index] for index in indices]
        self.shapes = [train_set.shapes[index] for index in indices]
        self.resolution, self.masked, self.whole = train_set.resolution, train_set.masked, train_set.whole

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self.train_set[self.indices[index]]

    def rgb_path(self, stem: str) -> Path:
        return self.train_set.rgb_path(stem)

    def label_path(self, stem: str) -> Path:
        return self.train_set.label_path(stem)

    def mask_paths(self, stem: str) -> list[Path]:
        return self.train_set.mask_paths(stem)


class ByShape(Dataset):
    """Data sets of one shape each, joined in the order of the whole training set."""

    def __init__(self, parts: list[tuple[Dataset, list[int]]]):
        self.parts = [part for part, _ in parts]
        self.places = {index: (i, j) for i, (_, indices) in enumerate(parts) for j, index in enumerate(indices)}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        part, place = self.places[key[0] if isinstance(key, tuple) else key]
        return self.parts[part][place]


def one_shape_each(train_set: TrainingSet) -> list[OneShape]:
    """The training set's samples of each shape."""
    return [OneShape(train_set, indices) for indices in buckets_of(train_set.shapes).values()]
