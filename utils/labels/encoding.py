"""Pseudo labels as files: coding, filling holes of measured maps, writing, and the record of their origin.

What a teacher does not know must not decide the range of a depth label: see `scene_pixels`.
"""

import json
import math
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.image_io.files import save_png
from utils.kinds.alignment import encode_far
from utils.kinds.label_record import OLDER, PROVENANCE
from utils.system.atomic import json_object, save_npy, write_json
from utils.system.provenance import versions

SKY_NORMAL = (0.0, 0.0, -1.0)  # facing the viewer, x right, y down, z forward
VOID = 0.5  # length below which a teacher's normal is none: masked, not measured
DEPTHS = ("depth", "disparity")
LEAST_LEVELS = 8  # grey levels of a depth label that can be learned from
OUT_OF_RANGE = "out_of_range"  # in provenance.json: image -> share of its pixels that do not decide near and far
SHARED = 0.005  # share of an image's pixels with one value, from which that value may be a clamp
SAME = 1e-5  # relative difference of values that count as one: interpolation rounds
LOST = 0.5  # a clamp is excluded if it would leave the scene less than this share of the grey levels
EMPTY = 3.0  # octaves (a factor of 8) without depths between a scene and a noisy sky


def encode(
    quantity: str, values: np.ndarray, measured: np.ndarray | None = None, depth_coding: str = "linear"
) -> np.ndarray:
    """Values as `utils.labels.teachers.Teacher` gives them -> the 8-bit label (H,W,3), rounded.

    normal: 255 (n/2 + 0.5). depth: (far - d) / (far - near), disparity: (d - far) / (near - far), clipped, with near
    and far its 2nd and 98th percentile, of the `measured` pixels, bool (H,W), if given, else of `scene_pixels`; both
    then coded, near = white, as `utils.kinds.alignment` says. albedo, shading: 255 v.

    Normals shorter than VOID have no direction and get SKY_NORMAL, as the sky of measured normals does.
    Pixels of a depth that are not finite are as far as the farthest (black), but for infinite disparity, which is
    near. Raises InputError where no pixel is finite, or where another map than depth has values that are not finite.
    """
    if quantity in DEPTHS:
        values = np.repeat(_nearness(quantity, values, measured, depth_coding)[..., None], 3, axis=2)
    elif not np.isfinite(values).all():
        raise InputError(f"{np.count_nonzero(~np.isfinite(values))} values are not finite")
    elif quantity == "normal":
        values = np.where(scene_pixels(quantity, values)[..., None], values, SKY_NORMAL) / 2 + 0.5
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)


def _nearness(quantity: str, values: np.ndarray, measured: np.ndarray | None, depth_coding: str) -> np.ndarray:
    """Depth or disparity (H,W) -> (H,W) in [0,1], near = 1, coded."""
    if not np.isfinite(values).any():
        raise InputError("no value of the depth is finite")
    scene = scene_pixels(quantity, values) if measured is None else measured & np.isfinite(values)
    low, high = np.percentile(values if scene.all() else values[scene], [2, 98])
    known = np.isfinite(values) | (values == np.inf)  # +inf is clipped: far in depth, near in disparity
    values = values if known.all() else np.where(known, values, high if quantity == "depth" else low)
    shade = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    near = 1 - shade if quantity == "depth" else shade
    return near if depth_coding == "linear" else 1 - encode_far(1 - near, depth_coding)


def scene_pixels(quantity: str, values: np.ndarray) -> np.ndarray:
    """The pixels where a teacher's values (H,W) or (H,W,3) show the scene, bool (H,W).

    Of normals, where the vectors are not shorter than VOID; of colours, everywhere. Of depth and disparity, those
    pixels decide near and far.

    Of depth and disparity are left out values that are not finite and, at either end,

    * a clamp: one value (within SAME) that at least SHARED of the pixels have, with at most 5 % beyond it, where
      interpolation overshoots; with the pixels around it where interpolation has blurred its edge;
    * of depth: a group of at least 2 % that lies beyond a gap of EMPTY octaves with less than 1 % of the pixels in it,
      as a sky of some kilometres does that is noisy.

    Each only where it costs the scene its grey levels: more than half of them (LOST) for a clamp, all but LEAST_LEVELS
    for the gap. Every other map, whatever it contains, keeps all of its finite pixels, and so its label.
    """
    if quantity not in DEPTHS:
        lengths = np.linalg.norm(values, axis=2)
        return np.asarray(lengths >= VOID) if quantity == "normal" else np.ones(lengths.shape, bool)
    scene = np.isfinite(values)
    if not scene.any():
        return scene
    for sign in (1, -1):
        scene &= ~_clamped(sign * values, scene)
    if quantity == "depth" and (far := _beyond_gap(np.sort(values[scene]))) is not None:
        scene &= values < far
    return scene if scene.any() else np.isfinite(values)


def _clamped(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The pixels of a clamp at the upper end of `values` (H,W) that costs too many grey levels, and around it."""
    ordered, nothing = np.sort(values[known]), np.zeros(values.shape, bool)
    wide = max(2, math.ceil(SHARED * len(ordered)))
    flat = np.flatnonzero(ordered[wide:] - ordered[:-wide] <= SAME * abs(ordered[wide:]))
    if not len(flat):
        return nothing
    level = ordered[flat[-1] + wide]
    margin = 2 * SAME * abs(level)
    if (ordered > level + margin).mean() > 0.05 or (ordered < level - margin).mean() < 0.01:
        return nothing
    sharp = known & (values >= level - margin)
    blurred = _grown(sharp, 2 + max(values.shape) // 64)  # by two pixels of a network's output, 128 wide or more
    rest, inner = values[known & ~sharp], values[known & ~blurred]
    if len(inner) < 0.01 * len(ordered):
        return nothing
    near, far = np.percentile(rest, [2, 98])
    inner_near, inner_far = np.percentile(inner, [2, 98])
    if far - near < LOST * (level - near) or inner_far - inner_near < LOST / 4 * (level - inner_near):
        return sharp if far - near < 1.5 * (inner_far - inner_near) else blurred  # the scene is farthest at the sky
    return nothing


def _beyond_gap(ordered: np.ndarray) -> float | None:
    """The depth from which a far group leaves the rest of ascending depths fewer than LEAST_LEVELS grey levels."""
    count = len(ordered)
    positive = ordered[ordered > 0]
    if len(positive) < max(16, 0.9 * count):
        return None
    octaves = np.log2(positive)
    starts = np.arange(octaves[0], octaves[-1] - EMPTY, 0.25)  # where the gap begins, in octaves
    inside = np.searchsorted(octaves, starts + EMPTY) - np.searchsorted(octaves, starts)
    for start in starts[inside < 0.01 * count]:
        rest = positive[octaves < start]
        beyond = positive[octaves >= start + EMPTY]
        if len(rest) < 0.01 * count or len(beyond) < 0.02 * count:
            continue
        near, far = np.percentile(rest, [2, 98])
        if (far - near) * 255 < LEAST_LEVELS * (np.percentile(ordered, 98) - near):
            return float(2 ** (start + EMPTY))
    return None


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask (H,W) and all pixels at most `by` rows and columns from it."""
    for axis in (0, 1):
        padded = np.pad(mask, [(by, by) if axis == each else (0, 0) for each in (0, 1)])
        mask = np.asarray(np.lib.stride_tricks.sliding_window_view(padded, 2 * by + 1, axis).any(axis=-1))
    return mask


def check_levels(label: np.ndarray) -> None:
    """InputError for a depth label, uint8 (H,W,3) or (H,W), with fewer than LEAST_LEVELS grey levels: it shows no
    depth.
    """
    levels = np.count_nonzero(np.bincount(label[..., 0].ravel() if label.ndim == 3 else label.ravel()))
    if levels < LEAST_LEVELS:
        raise InputError(
            f"the depth label has {levels} grey levels, and fewer than {LEAST_LEVELS} show no depth: the teacher sees "
            "none here, or clamps almost all of the image; leave this image out, or take another teacher"
        )


def fill(values: np.ndarray, valid: np.ndarray, sky: bool, sky_value: np.ndarray | tuple[float, ...]) -> np.ndarray:
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
    """Write <path>.png and, of `values`, <path>.npy; the .png last and atomically: it marks the sample as complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is not None:
        save_npy(path.with_name(path.name + ".npy"), values.astype(np.float32))
    save_png(path.with_name(path.name + ".png"), label)


def record(
    output_dir: Path, described: dict, overwrite: bool, cure: str = "choose another --output_dir, or --overwrite"
) -> dict[str, float]:
    """Begin provenance.json, and return what it holds as OUT_OF_RANGE of images that have labels already.

    InputError, ending in `cure`, if the folder holds labels of other making, unless `overwrite`.
    """
    path, earlier = output_dir / PROVENANCE, {}
    if path.is_file() and not overwrite:
        try:
            found = OLDER | json_object(path.read_text())
            asked = {key: value for key, value in described.items() if key != "self_check"}  # it may be left out
            changed = [key for key, value in asked.items() if found.get(key) != json.loads(json.dumps(value))]
        except (ValueError, TypeError):
            raise InputError(f"{path}: not readable; {cure}") from None
        earlier = found.get(OUT_OF_RANGE, {})
        if changed:
            raise InputError(
                f"{output_dir}: holds labels made with other {', '.join(changed)} (see {PROVENANCE}); {cure}"
            )
    elif not overwrite and output_dir.is_dir() and any(output_dir.rglob("*.png")):
        raise InputError(f"{output_dir}: holds images of unknown origin; {cure}")
    output_dir.mkdir(parents=True, exist_ok=True)
    finish(output_dir, described, {"complete": False}, earlier)
    return earlier


def finish(output_dir: Path, described: dict, counts: dict, left_out: dict[str, float]) -> None:
    """Write provenance.json: how the labels were made, with which versions, how many there are, and image -> share of
    pixels that `scene_pixels` left out, where that was any.
    """
    content = {**described, "versions": versions(), "counts": counts}
    write_json(output_dir / PROVENANCE, content | ({OUT_OF_RANGE: left_out} if left_out else {}))
