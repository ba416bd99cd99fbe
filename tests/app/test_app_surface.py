"""The surface in the 3D view: no triangle across a silhouette, and slopes as they were."""

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from app.surface import sharpened, write_surface
from utils.image_io import geometry
from utils.inference.prediction import Prediction
from utils.intrinsics import DEPTH

HEIGHT, WIDTH, FOV = 192, 256, 60.0
FOCAL = WIDTH / 2 / np.tan(np.radians(FOV) / 2)
COLUMN, ROW = np.meshgrid((np.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL, (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) / FOCAL)
FLOOR = 1.5 / np.maximum(ROW, 1e-9)  # 1.5 m below the camera
BOX = np.zeros((HEIGHT, WIDTH), bool)
BOX[48:136, 80:160] = True


def seen(depth: np.ndarray, pixels: int = 64) -> np.ndarray:
    """The depth as a network whose long side has so many pixels returns it, brought to this size."""
    small = Image.fromarray(depth.astype(np.float32)).resize((pixels, pixels * HEIGHT // WIDTH), Image.Resampling.BOX)
    return np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)).astype(float)


@pytest.mark.parametrize("front", [1.2, 2.0, 2.6])
@pytest.mark.parametrize("pixels", [64, 96, 128])
def test_no_triangle_joins_a_box_and_the_wall_behind_it(front, pixels):
    blurred = seen(np.where(BOX, front, 3.5), pixels)
    between = (blurred > front * 1.02) & (blurred < 3.5 / 1.02)
    assert between.sum() > 500  # what would become a torn skirt around the box
    found = sharpened(blurred)
    faces = geometry.triangles(geometry.points(found, FOV))
    used = found.reshape(-1)[faces]
    assert np.ptp(used, axis=1).max() < 0.05
    assert np.minimum(abs(used - front) / front, abs(used - 3.5) / 3.5).max() < 0.03
    wall, whole = (found.reshape(-1)[faces] > 3).all(1).sum(), 2 * (HEIGHT - 1) * (WIDTH - 1)
    ring = 2 * 2 * (88 + 80)  # triangles of the quads on the outline
    assert whole - len(faces) < 1.1 * ring, "the gap is wider than a pixel"
    assert abs(wall - 2 * (~BOX).sum()) < 4 * ring


@pytest.mark.parametrize("depth", [
    np.minimum(FLOOR, 4.0), np.minimum(FLOOR, 12.0), -2.5 / (0.3 * COLUMN - 0.4 * ROW - 0.8),
    np.full((HEIGHT, WIDTH), 2.0), 3 / (1 + 0.8 * np.abs(COLUMN)),
], ids=["floor and wall", "floor to 12 m", "tilted plane", "wall", "corner of a room"])  # fmt: skip
def test_slopes_and_creases_keep_their_depth(depth):
    np.testing.assert_array_equal(sharpened(depth), depth)
    assert np.abs(sharpened(seen(depth)) - seen(depth)).max() < 0.02 * 12


def test_the_file_has_the_sharpened_surface_in_the_images_colours(tmp_path):
    depth = np.where(BOX, 1.0, 4.0).repeat(2, 0).repeat(2, 1).astype(np.float32)
    shade = np.broadcast_to((1 - (depth - 1) / 3) * 2 - 1, (3, *depth.shape)).copy()
    prediction = Prediction(DEPTH, torch.from_numpy(shade))
    image = Image.new("RGB", depth.shape[::-1], (200, 30, 40))
    path = write_surface(prediction, image, tmp_path / "new" / "a.glb", 1, 4, FOV)
    (mesh,) = trimesh.load(path).geometry.values()
    assert len(mesh.vertices) == HEIGHT * WIDTH
    z = -mesh.vertices[:, 2][mesh.faces]
    assert set(np.unique(z.round(3))) == {1, 4} and np.ptp(z, axis=1).max() < 1e-5
