"""Shared by the tests in a real Blender: a small scene, its export, and running a program there."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import python

BPY = os.environ.get("BPY_PYTHON")
needs_bpy = pytest.mark.skipif(not BPY, reason="BPY_PYTHON names no Python with bpy; make blender")
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

START = """
import bpy, importlib, json, sys
from pathlib import Path
MODULE = "bl_ext.user_default.intrinsic_lora"
bpy.ops.wm.open_mainfile(filepath=sys.argv[1], load_ui=False)
bpy.ops.extensions.package_install_files(filepath=sys.argv[2], repo="user_default", enable_on_install=True)
chosen = bpy.context.preferences.addons[MODULE].preferences
scene = bpy.context.scene
scene.render.engine, scene.render.resolution_x, scene.render.resolution_y = "CYCLES", 64, 48
scene.cycles.samples, scene.camera = 4, bpy.data.objects["Camera"]
def part(name):
    return importlib.import_module(f"{MODULE}.{name}")
def refused(operator, **options):
    try:
        operator(**options)
    except RuntimeError as error:
        return str(error)
"""


def in_blender(program: str, *words: object, env: dict | None = None) -> str:
    """Run the text of a program in bpy; its output. A failure shows everything."""
    done = subprocess.run(
        [str(BPY), "-c", program, *map(str, words)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def export(scene: Path, out: Path, *more: object, check: bool = True):
    words = ["--out", out, "--size", "64x48", "--samples", 16, "--bpy_python", BPY, *more]
    return python("-m", "integrations.blender.export", scene, *words, check=check)


def truth(out: Path, task: str, stem: str = "room_0000", folder: str = "gt") -> np.ndarray:
    return np.load(out / task / folder / f"{stem}.npy")
