"""The folder of this repository, which its scripts, shipped LoRAs and examples are in, and folders of users."""

import os
from pathlib import Path

from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def check_folder(folder: Path, advice: str) -> None:
    """InputError, with `advice` on what to do, where there is no such folder."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, False for one that may not be looked into
        what = "a file, not a folder" if os.path.isfile(folder) else "no such folder"
        raise InputError(f"{folder}: {what}{advice}")


def check_own_folders(root: Path, labels: Path | None) -> None:
    """InputError where a folder of one's own lacks images/ or its labels, `labels` or labels/."""
    check_folder(
        root / "images", "; put your images there, or pass as --train_data_dir the folder that contains images/"
    )
    check_folder(labels or root / "labels", "; put the labels there, or pass their folder as --pseudo_root")
