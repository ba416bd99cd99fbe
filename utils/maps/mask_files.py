"""Masks that lie next to the truth, under the names that tools give them; for the evaluation and for data sets."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.maps.files import read_mask

MASK_TAILS = ("_depth_mask", "_depth_valid", "_valid_mask", "_mask", "_valid")  # after a map's stem; the longer first
MASK_FOLDERS = ("masks", "mask")  # in the truth's folder
MASK_ENDINGS = (".npy", ".png")


def stem_of_mask(stem: str) -> str | None:
    """`stem` without a tail of MASK_TAILS; None if it has none."""
    return next((stem.removesuffix(tail) for tail in MASK_TAILS if stem.endswith(tail)), None)


def masks_next_to(truth: Path, stems: Iterable[str], root: Path | None = None) -> list[Path]:
    """The files that are masks of `truth` by their names: `<stem><tail>` in its folder; `<stem>` or `<stem><tail>` in
    a folder of MASK_FOLDERS there or, of the same relative path, below `root`.
    """
    bare = list(dict.fromkeys(stems))
    tailed = [f"{stem}{tail}" for stem in bare for tail in MASK_TAILS]
    places = [(truth.parent, tailed)]
    places += [(truth.parent / name, bare + tailed) for name in MASK_FOLDERS]
    if root is not None and truth.parent != root:
        places += [(root / name / truth.parent.relative_to(root), bare + tailed) for name in MASK_FOLDERS]
    names = (folder / f"{stem}{ending}" for folder, stems in places for stem in stems for ending in MASK_ENDINGS)
    return [path for path in dict.fromkeys(names) if path.is_file()]


def the_mask(candidates: Sequence[Path]) -> Path | None:
    """The first of an image's masks, None if it has none. InputError where two of them differ."""
    for other in candidates[1:]:
        try:
            same = np.array_equal(read_mask(candidates[0]), read_mask(other))
        except ValueError as error:
            raise InputError(f"{candidates[0]} and {other}: masks of one image, not both readable ({error})") from None
        if not same:
            raise InputError(f"{candidates[0]} and {other}: two different masks of one image; remove one of them")
    return candidates[0] if candidates else None
