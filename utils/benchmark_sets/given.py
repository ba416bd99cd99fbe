"""Other people's predictions, found by the names that their programs give them.

| who | file of image <dir>/<stem>.png | normals' axes | albedo, shading |
|---|---|---|---|
| this project's inference | <dir>/<stem>_<task>.npy, .exr, _16bit.png, .png | opencv | sRGB |
| Marigold, depth; Lotus, depth | <dir>/pred_<stem>.npy, pred_<id>.npy of rgb_<id>.png | | |
| Marigold, normals | <dir>/<id>_img.npy, channels first | opengl | |
| Marigold, albedo and shading | <dir>/<stem>_<task>.npy, channels first | | sRGB; linear of Hypersim |
| DSINE, Lotus, normals | <folder>_<id>_norm.png of <folder>/<id>_img.png | dsine | |

<dir> is the image's folder in its set, whole or without its first parts, below any other folders.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from utils.benchmark_sets.sets import BenchmarkSet, Item
from utils.errors import InputError
from utils.evaluation.pairs import FORMATS, ending_of
from utils.evaluation.scoring import PredictionError
from utils.image_io.files import read_raw


class Named(NamedTuple):
    """One prediction's file, and the axes that whoever names it so writes."""

    path: Path
    frame: str


def find_given(folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Last part of a map's name without its ending -> (its whole name below `folder`, file) of each, the most precise
    format of one name alone. Raises InputError where there are none.
    """
    if not folder.is_dir():
        raise InputError(f"--pred_dir {folder}: no such folder")
    best: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if (ending := ending_of(path)) is None:
            continue
        name = path.relative_to(folder).as_posix()[: -len(ending)]
        if name not in best or FORMATS.index(ending) < FORMATS.index(str(ending_of(best[name]))):
            best[name] = path
    if not best:
        raise InputError(f"--pred_dir {folder}: no .npy, .exr or .png below it; name the folder of the predictions")
    found = defaultdict(list)
    for name, path in best.items():
        found[name.rpartition("/")[2]].append((name, path))
    return dict(found)


def pair_given(
    one: BenchmarkSet, items: Sequence[Item], given: Mapping[str, list[tuple[str, Path]]]
) -> dict[str, Named]:
    """Name of an image -> its prediction, for those that have one. InputError where two files claim an image, or one
    file two images.
    """
    found: dict[str, Named] = {}
    images: dict[Path, str] = {}
    for item in items:
        for wanted, frame in names_of(one, item):
            same = [(name, path) for name, path in given.get(wanted.rpartition("/")[2], ()) if ends(name, wanted)]
            if len(same) > 1:
                own = {one.name, one.family}
                same = [(name, path) for name, path in same if own & set(name.split("/"))] or same
            if len(same) > 1:
                raise InputError(
                    f"--pred_dir: {' and '.join(str(path) for _, path in same)} both claim {item.name} of {one.name}; "
                    f"put each set's predictions into a folder {one.name}"
                )
            if same:
                path = same[0][1]
                if path in images:
                    raise InputError(
                        f"--pred_dir: {path} would be the prediction of {images[path]} and of {item.name} of "
                        f"{one.name}; keep the images' folders above the predictions"
                    )
                found[item.name], images[path] = Named(path, frame), item.name
                break
    return found


def ends(name: str, wanted: str) -> bool:
    """Whether two names are the same but for folders in front of one of them."""
    return f"/{name}".endswith(f"/{wanted}") or f"/{wanted}".endswith(f"/{name}")


def names_of(one: BenchmarkSet, item: Item) -> list[tuple[str, str]]:
    """(name without ending, axes of normals) of the files that may be an image's prediction; the surest first."""
    image, task = PurePosixPath(item.name), one.intrinsic.name
    folder, stem = image.parent, image.stem
    names = [(folder / f"{stem}_{task}", "opencv"), (folder / f"pred_{stem}", "opengl")]
    if "_" in stem:
        names.append((folder / f"pred_{stem.partition('_')[2]}", "opengl"))
    names.append((folder / stem, "opengl"))
    scene = folder.name or one.family
    names.append((PurePosixPath(f"{scene}_{stem.removesuffix('_img')}_norm"), "dsine"))
    return [(name.as_posix(), frame) for name, frame in names]


def read_given(one: BenchmarkSet, named: Named, frame: str | None, space: str | None) -> tuple[np.ndarray, str, str]:
    """(values of a predicted map, axes, colour space), channels last. PredictionError names the file.

    frame, space: --pred_frame and --pred_space; None: those of whoever names files so.
    """
    kind = one.intrinsic.map_kind
    try:
        raw = read_raw(named.path)
        array, first = raw.array, False
        if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
            array, first = (array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)), True
        values = kind.prediction_in(raw._replace(array=array)).values
    except ValueError as error:
        raise PredictionError(f"{named.path}: {error}") from None
    known = "linear" if first and one.family == "hypersim" else one.intrinsic.coding
    return values, frame or named.frame, space or known
