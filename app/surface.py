"""The depth as a small surface for the 3D view. Silhouettes are sharpened, so that no triangle crosses them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from utils.image_io import geometry
from utils.inference.output import FOV, Output
from utils.inference.prediction import Prediction
from utils.system.atomic import make_folder, save_bytes

SIDE = 256  # longest side of the surface in the 3D view, in pixels
REACH = SIDE // 42  # pixels: half the width of a blurred silhouette, three pixels of a network that sees 64
JUMP = 0.08  # share of the depth; 1.7 times what `geometry.GRAZING` leaves whole between two pixels
STEP = 0.75  # a window twice as wide: a slope spans 2 times the depth, half a slope 1.5 times, a step no more at all


def write_surface(depth: Prediction, image: Image.Image, path: Path, near: float, far: float, fov: float) -> Path:
    """Write a predicted depth to `path`, a .glb of at most SIDE pixels a side. Raises `Output`'s InputErrors."""
    output = Output(("glb",), near=near, far=far, fov=fov)
    small = shrunk(depth, SIDE)
    metres = sharpened(geometry.metres(small.values, near, far))
    make_folder(path.parent, "the temporary folder")
    save_bytes(path, geometry.glb(geometry.points(metres, output.fov or FOV), image.resize(metres.shape[::-1]), {}))
    return path


def shrunk(prediction: Prediction, side: int) -> Prediction:
    """A prediction of depth or colour whose longest side is at most `side` pixels."""
    height, width = prediction.shape
    scale = side / max(height, width)
    if scale >= 1:
        return prediction
    size = (max(2, round(height * scale)), max(2, round(width * scale)))
    return Prediction(
        prediction.intrinsic, F.interpolate(prediction.map[None], size=size, mode="area")[0], None, prediction.facts
    )


def sharpened(metres: np.ndarray) -> np.ndarray:
    """Depth (H,W) whose blurred silhouettes become steps of one pixel, which `geometry.triangles` leaves open.

    A network's silhouette is a ramp of several pixels. Parts of it are steep enough to be left open and parts are not,
    which tears its edge. A pixel is part of a ramp where the depth in a window of REACH spans more than JUMP and
    hardly more in a window twice as wide (STEP: slopes continue, steps do not), and changes fast at the pixel itself.
    It takes the depth of one of the two sides, the one that is closer to its own.
    """
    reach = max(1, round(REACH * max(metres.shape) / SIDE))
    closeness = 1 / metres  # linear in the image on every plane, whatever its angle
    (top, span), (_, wider), (_, here) = (_spans(closeness, size) for size in (reach, 2 * reach, 1))
    step = (span > JUMP * top) & (span > STEP * wider)
    left = step & (here > 0.35 * span / reach)  # over 3 pixels; an even slope over the whole window has 1
    found = np.where(left, np.nan, metres)
    for _ in range(2 * reach):
        rim = np.pad(found, 1, constant_values=np.nan)
        sides = np.stack([rim[:-2, 1:-1], rim[2:, 1:-1], rim[1:-1, :-2], rim[1:-1, 2:]])
        far_from = np.where(np.isnan(sides), np.inf, np.abs(sides - metres))
        closest = np.take_along_axis(sides, far_from.argmin(0)[None], 0)[0]
        found = np.where(np.isnan(found), closest, found)
    return np.where(np.isnan(found), metres, found)


def _spans(values: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """(H,W) each, in a window of `reach` pixels to every side: the largest, and the largest minus the least."""
    padded = np.pad(values, reach, mode="reflect", reflect_type="odd")  # slopes continue beyond the border
    both = torch.from_numpy(np.stack([padded, -padded])[None])
    largest, least = F.max_pool2d(both, 2 * reach + 1, 1)[0].numpy() * np.array([1, -1])[:, None, None]
    return largest, largest - least
