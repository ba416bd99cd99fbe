"""Renders a scene from many cameras and writes the raw passes. Runs in a Python that has `bpy` (4.2 or newer); nothing
else of this project is imported here, because bpy brings its own numpy.

    python render.py JOB.json       {"scene", "raw", "stems", "seed", "size", "samples", "from_file"}

Each image is rendered twice with Cycles on the CPU: with all samples for image, albedo and shading; and with one
sample in the middle of each pixel for normals and depth, which an average over a pixel's area would falsify at edges.
"""

import json
import os
import sys
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix, Vector

sys.path.insert(
    0, str(Path(__file__).parent)
)  # Blender, other than Python, does not search the folder of the file it runs
from compositor import COLOUR, GEOMETRY, render
from state import defaults, metres, printable, take_over

FIELD_OF_VIEW, TRIES, RAYS = 60.0, 500, 8  # degrees; cameras tried; rays along each side of the test grid
LISTED = 20  # settings that the note names
NEAREST, SEEN = (
    0.05,
    0.7,
)  # share of the box's diagonal that must be free ahead; share of the rays that must hit a surface


def main(job: dict) -> None:
    wanted = defaults()
    bpy.ops.wm.open_mainfile(filepath=job["scene"], load_ui=False, use_scripts=False)  # a stranger's code stays unrun
    scene = bpy.context.scene
    objects = sorted((one for one in scene.objects if one.type == "CAMERA"), key=lambda one: one.name)
    numbers = [int(stem.rpartition("_")[2]) for stem in job["stems"]]
    chosen = [objects[number] for number in numbers] if job["from_file"] else []
    cameras, changed, warnings = take_over(scene, chosen, wanted)
    for line in warnings:
        print(printable(f"warning: {line}"))
    if changed:
        more = f", and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
        print(printable(f"note: reset to Blender's defaults: {', '.join(changed[:LISTED])}{more}"), flush=True)
    set_up(scene, *job["size"], job["seed"])
    if not job["from_file"]:
        data = bpy.data.cameras.new("intrinsic-lora")
        data.angle = np.radians(FIELD_OF_VIEW)
        cameras = [bpy.data.objects.new("intrinsic-lora", data)] * len(numbers)
        scene.collection.objects.link(cameras[0])
    for stem, number, camera in zip(job["stems"], numbers, cameras):
        scene.camera = camera
        if not job["from_file"]:
            scene.camera.matrix_world = place(scene, np.random.default_rng([job["seed"], number]), number)
            bpy.context.view_layer.update()
        passes = render(scene, Path(job["raw"]), COLOUR, job["samples"], 1.5)
        passes |= render(scene, Path(job["raw"]), GEOMETRY, 1, 0.01)
        passes["to_camera"] = np.array(scene.camera.matrix_world.to_3x3().normalized()).T
        passes["metres"] = np.array(metres(scene))
        passes["clip_end"] = np.array(scene.camera.data.clip_end)
        part = Path(job["raw"], f"{stem}.part.npz")
        np.savez(part, **passes)
        part.rename(Path(job["raw"], f"{stem}.npz"))  # complete, or not there
        print(f"rendered {stem}", flush=True)


def set_up(scene, width: int, height: int, seed: int) -> None:
    """Cycles on the CPU, on top of Blender's defaults; the file's light and materials stay. The image is sRGB
    without a film look, so that it is albedo times shading where surfaces are diffuse.
    """
    scene.render.engine, scene.cycles.device = "CYCLES", "CPU"
    scene.cycles.seed = seed
    scene.cycles.use_denoising = scene.cycles.use_adaptive_sampling = False
    scene.render.resolution_x, scene.render.resolution_y = width, height
    scene.render.use_sequencer = False
    layer = bpy.context.view_layer
    for name in ("normal", "z", "diffuse_color", "diffuse_direct", "diffuse_indirect"):
        setattr(layer, f"use_pass_{name}", True)


def place(scene, rng: np.random.Generator, number: int) -> Matrix:
    """A camera inside the box of all visible meshes, that looks at its middle and at a surface, with free space ahead.

    Position: uniform in the box's inner 80 % in plan, between 30 and 80 % of its height. Target: uniform in its middle
    half. The first of TRIES is taken that sees surfaces on SEEN of its rays, none nearer than NEAREST.
    """
    meshes = [one for one in bpy.context.view_layer.objects if one.type == "MESH" and not one.hide_render]
    corners = np.array([one.matrix_world @ Vector(corner) for one in meshes for corner in one.bound_box])
    if not len(corners):
        raise SystemExit("error: the scene holds no mesh that is rendered")
    low, size = corners.min(0), np.ptp(corners, axis=0)
    graph, reach = bpy.context.evaluated_depsgraph_get(), NEAREST * float(np.linalg.norm(size))
    for _ in range(TRIES):
        eye = Vector(low + size * rng.uniform([0.1, 0.1, 0.3], [0.9, 0.9, 0.8]))
        aim = Vector(low + size * rng.uniform(0.25, 0.75, 3)) - eye
        if aim.length < reach:
            continue
        turn = aim.to_track_quat("-Z", "Y")
        half = np.tan(np.radians(FIELD_OF_VIEW / 2))
        grid = np.linspace(-half, half, RAYS)
        hits = [scene.ray_cast(graph, eye, turn @ Vector((x, y, -1)).normalized()) for x in grid for y in grid]
        distances = [(hit[1] - eye).length for hit in hits if hit[0]]
        if len(distances) >= SEEN * len(hits) and min(distances) > reach:
            return Matrix.Translation(eye) @ turn.to_matrix().to_4x4()
    raise SystemExit(f"error: camera {number}: {TRIES} places seen and none looks at the scene with room ahead; put "
        "cameras into the file and pass --from_file")  # fmt: skip


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[-1]).read_text()))
    sys.stdout.flush()
    os._exit(0)  # bpy crashes when it ends in the usual way with a file open that holds a Python driver
