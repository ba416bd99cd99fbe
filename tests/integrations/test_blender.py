"""Blender scenes as training data, in a real bpy: `make blender`, or BPY_PYTHON=path/to/python pytest."""

import json

import numpy as np
import pytest
from blender_scene import EYE, TILT, export, in_blender, needs_bpy, truth
from helpers import python
from PIL import Image

from utils.image_io.colour_space import to_linear


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
def test_albedo_is_the_material_and_the_image_is_albedo_times_shading(filed):
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
    words = ["--dataset", "folder", "--train_data_dir", out / "depth", "--output_dir", tmp_path / "run"]
    words += ["--resolution", 32, "--pretrained_model_name_or_path", bases["sd15"], "--max_train_steps", 1]
    words += ["--train_batch_size", 1]
    python("sd_single_diode_pseudo_depth.py", *words, "--val_fraction", 0.25, "--report_to", "none")
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]
    assert any(key.endswith("abs_rel") and "label" not in key for key in json.loads(line))  # scored against gt


@needs_bpy
def test_an_empty_scene_and_a_file_without_camera_are_refused(tmp_path):
    file = tmp_path / "empty.blend"
    program = "import bpy, sys; bpy.ops.wm.read_factory_settings(use_empty=True); "
    in_blender(program + "bpy.ops.wm.save_as_mainfile(filepath=sys.argv[1])", file)
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
