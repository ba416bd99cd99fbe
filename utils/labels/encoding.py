"""Pseudo labels as files: coding, filling holes of measured maps, writing, and the record of where they came from."""

import json
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.maps.depth_coding import encode_far
from utils.maps.label_record import OLDER, PROVENANCE
from utils.system.atomic import save_npy, save_png, write_json
from utils.system.provenance import versions

SKY_NORMAL = (0.0, 0.0, -1.0)  # facing the viewer, x right, y down, z forward


def encode(
    quantity: str, values: np.ndarray, measured: np.ndarray | None = None, depth_coding: str = "linear"
) -> np.ndarray:
    """Values as `utils.labels.teacher.Teacher` gives them -> the 8-bit label (H,W,3), rounded.

    normal: 255 (n/2 + 0.5). depth: (far - d) / (far - near), disparity: (d - far) / (near - far), clipped, with near
    and far its 2nd and 98th percentile (of the `measured` pixels, bool (H,W), if given); both then coded, near =
    white, as `utils.maps.depth_coding` says. albedo, shading: 255 v.
    """
    if not np.isfinite(values).all():
        raise InputError(f"{np.count_nonzero(~np.isfinite(values))} values are not finite")
    if quantity in ("depth", "disparity"):
        low, high = np.percentile(values if measured is None else values[measured], [2, 98])
        shade = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
        near = 1 - shade if quantity == "depth" else shade
        near = near if depth_coding == "linear" else 1 - encode_far(1 - near, depth_coding)
        values = np.repeat(near[..., None], 3, axis=2)
    elif quantity == "normal":
        values = values / 2 + 0.5
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)


def fill(values: np.ndarray, valid: np.ndarray, sky: bool, sky_value) -> np.ndarray:
    """A measured map (H,W,C) without holes: each invalid pixel gets the value of the nearest valid one.

    sky: outdoors, invalid pixels with nothing valid above them in their column are sky and get `sky_value` (C,).
    Raises InputError where nothing is valid.
    """
    if not valid.any():
        raise InputError("no valid pixel")
    rows, columns = nearest(valid)
    filled = values[rows, columns]
    if sky:
        filled[~np.logical_or.accumulate(valid, axis=0)] = sky_value
    return filled


def nearest(valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every pixel of (H,W) the row and column of a nearest valid one, by jump flooding (Rong and Tan, 2006).

    Steps 1, then from half the larger side down to 1: exact but for rare ties of less than a pixel.
    """
    height, width = valid.shape
    grid = np.indices(valid.shape)
    row, column = grid[0], grid[1]
    far = 4 * max(height, width)
    best_row, best_column = np.where(valid, row, far), np.where(valid, column, far)
    distance = np.where(valid, 0, 2 * far**2)
    for step in [1, *(1 << k for k in reversed(range((max(height, width) - 1).bit_length())))]:
        for down in (-step, 0, step):
            for right in (-step, 0, step):
                here = np.s_[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
                there = np.s_[max(0, down) : height - max(0, -down), max(0, right) : width - max(0, -right)]
                if not (down or right) or abs(down) >= height or abs(right) >= width:
                    continue
                other_row, other_column = best_row[there], best_column[there]
                other = (other_row - row[here]) ** 2 + (other_column - column[here]) ** 2
                closer = (other < distance[here]) & (other_row < far)
                for target, source in ((best_row, other_row), (best_column, other_column), (distance, other)):
                    target[here] = np.where(closer, source, target[here])
    return best_row, best_column


def write_label(path: Path, label: np.ndarray, values: np.ndarray | None) -> None:
    """Write <path>.png and, of `values`, <path>.npy; the .png last and in one piece: it says that all is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is not None:
        save_npy(path.with_name(path.name + ".npy"), values.astype(np.float32))
    save_png(path.with_name(path.name + ".png"), label)


def record(output_dir: Path, described: dict, overwrite: bool) -> None:
    """Begin provenance.json. InputError if the folder holds labels of other making, unless `overwrite`."""
    path = output_dir / PROVENANCE
    if path.is_file() and not overwrite:
        try:
            found = OLDER | json.loads(path.read_text())
            asked = {key: value for key, value in described.items() if key != "self_check"}  # it may be left out
            changed = [key for key, value in asked.items() if found.get(key) != json.loads(json.dumps(value))]
        except (ValueError, TypeError):
            raise InputError(f"{path}: not readable; pass --overwrite to label anew") from None
        if changed:
            raise InputError(
                f"{output_dir}: holds labels made with other {', '.join(changed)} (see {PROVENANCE}); choose another "
                "--output_dir, or --overwrite"
            )
    elif not overwrite and output_dir.is_dir() and any(output_dir.rglob("*.png")):
        raise InputError(
            f"{output_dir}: holds pictures of unknown making; choose another --output_dir, or --overwrite"
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    finish(output_dir, described, {"complete": False})


def finish(output_dir: Path, described: dict, counts: dict) -> None:
    """Write provenance.json: how the labels were made, with which versions, and how many there are."""
    content = {**described, "versions": versions(), "counts": counts}
    write_json(output_dir / PROVENANCE, content)
