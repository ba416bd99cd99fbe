"""Albedo and shading on DIODE's tree. DIODE measures neither: where no truth is given, the label stands in for it."""

from pathlib import Path

import numpy as np

from dataloaders.diode import Diode
from utils.errors import InputError
from utils.maps.files import read_npy


class DiodeColour(Diode):
    """gt: linear light (3,R,R), nominal range [0,1], its scale arbitrary; valid: where it is finite.

    `root` is either DIODE's `depths/`, and then nothing is measured: `measured` is False, the label stands in, and a
    note says so. Or it is a folder of the same tree, beside `depths/` or one deeper, that holds linear float
    truth (H,W) or (H,W,3) for every sample.
    """

    def __init__(self, root: str | Path, *args, **options):
        super().__init__(root, *args, **options)
        if not self.measured:
            self.notes.append(
                f"DIODE measures no {self.folder}: val/<split>/label_* compare drawings with PSEUDO LABELS, not with "
                f"ground truth (--train_data_dir=<folder of *{self.suffix}> would)"
            )

    @property
    def measured(self) -> bool:
        return self.root.resolve() != self.rgb_root.resolve()

    def ground_truth(self, stem: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.root / f"{stem}{self.suffix}"
        values = read_npy(path)
        values = values[..., None] if values.ndim == 2 else values
        if values.ndim != 3 or values.shape[2] not in (1, 3) or values.dtype.kind != "f":
            raise InputError(f"{path}: {values.dtype} {values.shape}, expected linear float (H, W) or (H, W, 3)")
        valid = np.isfinite(values).all(axis=2)
        return np.broadcast_to(np.where(valid[..., None], values, 0), (*valid.shape, 3)), valid

    def _needed(self) -> list[tuple[Path, str]]:
        return super()._needed() if self.measured else super()._needed()[:-1]


class DiodeAlbedo(DiodeColour):
    """Albedo: the share of light that a surface reflects, by channel."""

    task, suffix, folder = "albedo", "_albedo.npy", "albedo"


class DiodeShading(DiodeColour):
    """Shading: the light that arrives, times the cosine; picture = albedo x shading in linear light."""

    task, suffix, folder = "shading", "_shading.npy", "shading"
