"""Files of `--formats glb` and `exr` in a real Blender: sizes, axes and numbers."""

import json

import numpy as np
import pytest
import torch
from blender_scene import in_blender, needs_bpy
from PIL import Image

from utils.inference.output import Output
from utils.inference.prediction import Prediction
from utils.inference.write import write
from utils.intrinsics import INTRINSICS

HEIGHT, WALL, FOV, SIZE = 0.8, 4.0, 60.0, (48, 64)  # metres of the camera above the floor and to the wall; degrees
IMPORT = """
import bpy, json, sys
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=sys.argv[1])
(thing,) = [one for one in bpy.data.objects if one.type == "MESH"]
places = [list(thing.matrix_world @ vertex.co) for vertex in thing.data.vertices]
normals = [list(thing.matrix_world.to_3x3() @ face.normal) for face in thing.data.polygons]
middles = [list(thing.matrix_world @ face.center) for face in thing.data.polygons]
image = next(node.image for node in thing.active_material.node_tree.nodes if node.bl_idname == "ShaderNodeTexImage")
print(json.dumps([places, normals, middles, list(image.size)]))
"""
READ = """
import bpy, json, sys
image = bpy.data.images.load(sys.argv[1])
print(json.dumps([list(image.size), image.channels, image.colorspace_settings.name, list(image.pixels)]))
"""


def floor_and_wall() -> np.ndarray:
    """Metres along the axis of a camera that looks level at a wall, over a floor."""
    height, width = SIZE
    focal = width / 2 / np.tan(np.radians(FOV) / 2)
    down = (np.arange(height) + 0.5 - height / 2) / focal
    floor = np.where(down > 0, HEIGHT / np.maximum(down, 1e-9), np.inf)
    return np.repeat(np.minimum(floor, WALL)[:, None], width, 1)


@needs_bpy
def test_a_glb_has_its_metres_and_stands_upright(tmp_path):
    depth = floor_and_wall()
    map = torch.from_numpy(np.broadcast_to(-depth, (3, *SIZE)).astype(np.float32).copy())  # near = large
    output = Output(formats=("glb",), near=float(depth.min()), far=WALL, fov=FOV)
    write(Prediction(INTRINSICS["depth"], map), tmp_path / "a.png", output, Image.new("RGB", SIZE[::-1], "red"))
    places, normals, middles, size = json.loads(in_blender(IMPORT, tmp_path / "a.glb").splitlines()[-1])
    places, normals, middles = np.array(places), np.array(normals), np.array(middles)
    half = WALL * np.tan(np.radians(FOV / 2))
    assert places[:, 1].max() == pytest.approx(WALL, abs=1e-3)  # forward is y
    assert places[:, 1].min() == pytest.approx(depth.min(), abs=1e-3)
    assert places[:, 2].min() == pytest.approx(-HEIGHT, abs=1e-3)  # down is -z
    assert np.ptp(places[:, 0]) == pytest.approx(2 * half * 63 / 64, abs=1e-3)
    is_floor, is_wall = middles[:, 2] < -HEIGHT + 1e-3, middles[:, 1] > WALL - 1e-3
    assert is_floor.sum() > 500 and is_wall.sum() > 1000
    across = np.cross(normals, (0, 0, 1))
    assert np.linalg.norm(across[is_floor], axis=1).max() < 1e-3 and (normals[is_floor, 2] > 0).all()  # upwards
    assert (normals[is_wall, 1] < -0.999).all()  # toward the camera
    assert size == [64, 48]


@needs_bpy
@pytest.mark.parametrize("task", INTRINSICS)
def test_an_exr_reads_back_with_its_numbers(task, tmp_path):
    rng = np.random.default_rng(0)
    map = torch.from_numpy(rng.uniform(-0.9, 0.9, (3, *SIZE)).astype(np.float32))
    made = Prediction(INTRINSICS[task], map)
    write(made, tmp_path / "a.png", Output(formats=("exr",), frame="blender"))
    size, channels, space, pixels = json.loads(in_blender(READ, tmp_path / "a.exr").splitlines()[-1])
    found = np.reshape(pixels, (size[1], size[0], channels))[::-1]
    assert size == [64, 48] and "sRGB" not in space
    values = made.values
    if task == "normal":
        x, y, z = np.moveaxis(values, -1, 0)
        assert np.allclose(found[..., :3], np.stack([x, z, -y], -1), atol=1e-6)
    elif task == "depth":
        assert np.allclose(found[..., 0], values, atol=1e-6)
    else:
        linear = np.where(values <= 0.04045, values / 12.92, ((np.maximum(values, 0) + 0.055) / 1.055) ** 2.4)
        assert np.allclose(found[..., :3], linear, atol=1e-5)
