"""Blender's scenes as training data, in a real bpy 4.2: `make blender`, or BPY_PYTHON=path/to/python pytest."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import python
from PIL import Image

from utils.maps.conventions import to_linear

BPY = os.environ.get("BPY_PYTHON")
needs_bpy = pytest.mark.skipif(not BPY, reason="BPY_PYTHON names no Python with bpy 4.2; make blender")
EYE, TILT = (0.0, -4.0, 2.0), 65.0  # metres; degrees from straight down
SCENE = f"""
import bpy, math, sys
bpy.ops.wm.read_factory_settings(use_empty=True)
def colour(thing, rgb):
    material = bpy.data.materials.new("m"); material.use_nodes = True
    nodes = material.node_tree.nodes; nodes.clear()
    shader, out = nodes.new("ShaderNodeBsdfDiffuse"), nodes.new("ShaderNodeOutputMaterial")
    shader.inputs["Color"].default_value = (*rgb, 1)
    material.node_tree.links.new(shader.outputs[0], out.inputs[0])
    thing.data.materials.append(material)
bpy.ops.mesh.primitive_plane_add(size=12); colour(bpy.context.object, (0.5, 0.25, 0.1))
bpy.ops.mesh.primitive_cube_add(size=1, location=(1, 0, 0.5)); colour(bpy.context.object, (0.1, 0.6, 0.2))
bpy.ops.mesh.primitive_uv_sphere_add(radius=0.6, location=(-1, 0, 0.6)); colour(bpy.context.object, (0.2, 0.3, 0.8))
bpy.ops.object.shade_smooth()
bpy.ops.object.light_add(type="SUN", rotation=(0.5, 0.3, 0)); bpy.context.object.data.energy = 2
camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera")); camera.data.angle = math.radians(50)
camera.location, camera.rotation_euler = {EYE}, (math.radians({TILT}), 0, 0)
bpy.context.scene.collection.objects.link(camera)
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[-1])
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("blender") / "room.blend"
    subprocess.run([BPY, "-c", SCENE, str(path)], check=True, capture_output=True)
    return path


def export(scene: Path, out: Path, *more: object, check: bool = True):
    words = ["--out", out, "--size", "64x48", "--samples", 16, "--bpy_python", BPY, *more]
    return python("-m", "integrations.blender.export", scene, *words, check=check)


@pytest.fixture(scope="module")
def filed(scene, tmp_path_factory) -> Path:
    """The scene from its own camera."""
    out = tmp_path_factory.mktemp("filed") / "data"
    export(scene, out, "--from_file", "--samples", 64)
    return out


def truth(out: Path, task: str, stem: str = "room_0000", folder: str = "gt") -> np.ndarray:
    return np.load(out / task / folder / f"{stem}.npy")


def floor(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(depth along the camera's axis in metres, normal with x right, y down, z forward) of the floor, by geometry."""
    height, width = shape
    half = np.tan(np.radians(25))
    x = (2 * (np.arange(width) + 0.5) / width - 1) * half
    y = (1 - 2 * (np.arange(height) + 0.5) / height) * half * height / width
    tilt = np.radians(TILT)
    up = np.array([0, np.sin(tilt), np.cos(tilt)])  # the world's z in the camera's axes: x right, y up, z back
    down = y[:, None] * up[1] - up[2] + 0 * x  # height lost for each metre along the axis
    return np.where(down < 0, EYE[2] / -np.minimum(down, -1e-9), np.inf), up * (1, -1, -1)


@needs_bpy
def test_depth_and_normals_are_those_of_geometry(filed):
    depth, normal = truth(filed, "depth"), truth(filed, "normal")
    wanted, up = floor(depth.shape)
    is_floor = (normal @ up > 0.9999) & (np.arange(48)[:, None] > 30)
    assert is_floor.mean() > 0.2
    assert np.abs(depth / wanted - 1)[is_floor].max() < 1e-3  # metres, along the axis, not along the ray
    facing = normal[truth(filed, "normal", folder="masks")]
    assert np.allclose(np.linalg.norm(facing, axis=1), 1, atol=1e-5)
    assert (facing[:, 2] < 0.35).all()  # z forward: what is seen faces the viewer


@needs_bpy
def test_albedo_is_the_material_and_the_picture_is_albedo_times_shading(filed):
    albedo, shading, valid = truth(filed, "albedo"), truth(filed, "shading"), truth(filed, "albedo", folder="masks")
    _, up = floor(valid.shape)
    is_floor = (truth(filed, "normal") @ up > 0.9999) & valid & (np.arange(48)[:, None] > 36)
    assert np.allclose(np.median(albedo[is_floor], 0), (0.5, 0.25, 0.1), atol=1e-3)
    picture = to_linear(np.asarray(Image.open(filed / "albedo" / "images" / "room_0000.png")) / 255)
    unclipped = valid & (picture.max(-1) < 0.99)
    assert np.abs(picture - albedo * shading)[unclipped].mean() < 0.01
    assert picture[unclipped].std() > 0.05


@needs_bpy
def test_random_cameras_see_the_scene_resume_and_repeat(scene, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    export(scene, first, "--cameras", 3)
    stems = [f"room_{number:04}" for number in range(3)]
    assert all(truth(first, "depth", stem, "masks").mean() > 0.5 for stem in stems)
    export(scene, again, "--cameras", 1)
    export(scene, again, "--cameras", 3)  # two more
    before = {path.relative_to(first): path.read_bytes() for path in first.rglob("*.*")}
    assert before == {path.relative_to(again): path.read_bytes() for path in again.rglob("*.*")}
    (again / "normal" / "images" / "room_0001.png").unlink()  # as if killed before its end
    export(scene, again, "--cameras", 3)
    assert before == {path.relative_to(again): path.read_bytes() for path in again.rglob("*.*")}
    done = export(scene, again, "--cameras", 3, "--seed", 1, check=False)
    assert done.returncode == 2 and "rendered with another seed" in done.stderr
    for task in ("normal", "depth", "albedo", "shading"):
        done = python("-m", "dataloaders", "check", "--dataset", "folder", "--train_data_dir", first / task)
        assert "3 " in done.stdout and not (first / "raw").exists()


@needs_bpy
def test_a_training_reads_it(scene, filed, bases, tmp_path):
    out = tmp_path / "data"
    export(scene, out, "--cameras", 4)
    words = [
        "--dataset",
        "folder",
        "--train_data_dir",
        out / "depth",
        "--output_dir",
        tmp_path / "run",
        "--resolution",
    ]
    words += [
        "--resolution",
        32,
        "--pretrained_model_name_or_path",
        bases["sd15"],
        "--max_train_steps",
        1,
        "--train_batch_size",
        1,
    ]
    python("sd_single_diode_pseudo_depth.py", *words, "--val_fraction", 0.25, "--report_to", "none")
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]
    assert any(key.endswith("abs_rel") and "label" not in key for key in json.loads(line))  # scored against gt


@needs_bpy
def test_an_empty_scene_and_a_file_without_camera_are_refused(tmp_path):
    file = tmp_path / "empty.blend"
    program = "import bpy, sys; bpy.ops.wm.read_factory_settings(use_empty=True); "
    subprocess.run([BPY, "-c", program + "bpy.ops.wm.save_as_mainfile(filepath=sys.argv[1])", str(file)], check=True)
    for more, why in (((), "holds no mesh"), (("--from_file",), "holds no camera; leave --from_file out")):
        done = export(file, tmp_path / f"out{len(more)}", *more, check=False)
        assert done.returncode == 2 and why in done.stderr


@pytest.mark.parametrize(("words", "why"), [
    (["no.blend", "--out", "x"], "no such .blend file"),
    (["SCENE", "--out", "x", "--size", "big"], "as in 512x384"),
    (["SCENE", "--out", "x", "--cameras", "0"], "must be at least 1"),
    (["SCENE", "--out", "x", "--bpy_python", "/no/python"], "cannot be run"),
    (["SCENE", "--out", "x"], "has no bpy"),
])  # fmt: skip
def test_wrong_flags_are_one_line(words, why, tmp_path):
    (tmp_path / "a.blend").touch()
    words = [str(tmp_path / "a.blend") if word == "SCENE" else word for word in words]
    done = python("-m", "integrations.blender.export", *words, check=False)
    assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr
