"""What training needs of a data set, whichever it is; `dataloaders.base.Maps` is one."""

from pathlib import Path
from typing import Protocol

from utils.intrinsics import Intrinsic
from utils.kinds.base import Score


class TrainingSet(Protocol):
    """Pictures and pseudo labels of one intrinsic, by number; a `torch.utils.data.Dataset`.

    Item `index`, or `(index, epoch)` where a new random crop is wanted each epoch, is a dict with rgb and target,
    float32 (3,R,R) in [-1,1], and stem, the sample's name; where `masked` also mask, bool (1,R,R): the pixels that
    count in the loss.

    resolution: R. center_crop: whether an item is the same in every epoch. stems: the samples' names, in order.
    whole: items are whole pictures, each of its own shape instead of R,R. shapes: (height, width) of every item.
    notes: printed when training starts.
    """

    intrinsic: Intrinsic
    resolution: int
    center_crop: bool
    masked: bool
    whole: bool
    stems: list[str]
    notes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, key: int | tuple[int, int], /) -> dict: ...

    @property
    def shapes(self) -> list[tuple[int, int]]: ...

    def rgb_path(self, stem: str) -> Path:
        """The file of a sample's picture."""

    def label_path(self, stem: str) -> Path:
        """The file of a sample's pseudo label."""

    def mask_paths(self, stem: str) -> list[Path]:
        """The files of a sample's mask."""

    @property
    def fingerprint(self) -> str:
        """Which samples these are, and what they hold: a run is resumed on the same ones."""

    @property
    def score(self) -> Score:
        """What a prediction scores against an item's gt."""

    @property
    def measured(self) -> bool:
        """Whether gt is ground truth, not the label."""

    @property
    def reference(self) -> str:
        """What validation compares with, for the checkpoint's metadata."""
