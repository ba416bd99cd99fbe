"""The add-on in a real Blender, from its zip: maps are loaded with their values and applied to surfaces."""

import numpy as np
import torch
from blender_scene import export, needs_bpy, truth
from helpers import ROOT

from utils.image_io.colour_space import to_srgb
from utils.inference.output import Output
from utils.inference.prediction import Prediction
from utils.inference.write import write
from utils.intrinsics import INTRINSICS


@needs_bpy
def test_true_maps_come_in_and_light_a_plane_as_cycles_has_them(session, filed, tmp_path):
    """Ground truth -> our PNGs -> the add-on -> a plane facing the camera -> Cycles, against Cycles of the scene."""
    valid = truth(filed, "normal", folder="masks") & truth(filed, "albedo", folder="masks")
    for task, values in (("normal", truth(filed, "normal")), ("albedo", 2 * to_srgb(truth(filed, "albedo")) - 1)):
        map = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)
        path = tmp_path / "maps" / task / "predicted" / f"room_{task}.png"
        write(Prediction(INTRINSICS[task], map), path, Output(formats=("png16",), frame="opengl"))
    program = """
maps = part("images").load_maps(Path(sys.argv[3]), "room")
for task, image in maps.items():
    setattr(scene.intrinsic_lora, task, image)
scene.intrinsic_lora.distance = 0.5
bpy.ops.intrinsic_lora.plane()
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[4])
print(json.dumps({image.name: list(image.pixels) for image in maps.values()}))
"""
    pixels = session(program, tmp_path / "maps", tmp_path / "plane.blend")
    seen = np.reshape(pixels["room_normal"], (48, 64, 4))[::-1, :, :3] * 2 - 1
    assert np.abs(seen * (1, -1, -1) - truth(filed, "normal"))[valid].max() < 0.02  # the image, as Blender reads it
    assert np.abs(np.reshape(pixels["room_albedo"], (48, 64, 4))[::-1, :, :3] - truth(filed, "albedo")).max() < 0.002

    export(tmp_path / "plane.blend", tmp_path / "data", "--from_file")
    depth = truth(tmp_path / "data", "depth", "plane_0000")
    assert np.allclose(depth, 0.5, atol=1e-4)  # nothing of the scene is seen, the plane fills the view
    lit = truth(tmp_path / "data", "normal", "plane_0000")
    assert np.abs(lit - truth(filed, "normal"))[valid].max() < 0.02  # the normals that Cycles shades the plane with
    colour = truth(tmp_path / "data", "albedo", "plane_0000")
    assert np.median(np.abs(colour - truth(filed, "albedo"))[valid]) < 0.002


@needs_bpy
def test_a_render_is_predicted_in_a_process_of_its_own_and_wired(session):
    program = """
chosen.project, chosen.python, chosen.flags = sys.argv[3], sys.argv[4], "--device cpu"
scene.intrinsic_lora.source = "RENDER"
bpy.ops.render.render()
bpy.ops.intrinsic_lora.predict(wait=True)
cube = bpy.data.objects["Cube"]
bpy.context.view_layer.objects.active = cube
bpy.ops.intrinsic_lora.wire()
bpy.ops.intrinsic_lora.wire()  # again: no second set of nodes
images = {task: getattr(scene.intrinsic_lora, task) for task in ("normal", "depth", "albedo", "shading")}
tree = cube.active_material.node_tree
print(json.dumps({
    "space": {task: image.colorspace_settings.name for task, image in images.items()},
    "size": [list(image.size) for image in images.values()],
    "packed": [image.packed_file is not None for image in images.values()],
    "kinds": sorted(node.bl_idname for node in tree.nodes),
    "links": sorted([one.from_node.bl_idname, one.to_node.bl_idname, one.to_socket.name] for one in tree.links),
    "length": [sum((2 * v - 1) ** 2 for v in images["normal"].pixels[4 * i : 4 * i + 3]) for i in range(64 * 48)],
}))
"""
    found = session(program, ROOT, ROOT / ".venv" / "bin" / "python")
    colour = {"normal": "Non-Color", "depth": "Non-Color", "albedo": "sRGB", "shading": "sRGB"}
    assert found["space"] == colour and found["size"] == [[64, 48]] * 4 and all(found["packed"])
    assert np.allclose(found["length"], 1, atol=1e-3)
    assert found["kinds"].count("ShaderNodeTexImage") == 2 and found["kinds"].count("ShaderNodeNormalMap") == 1
    assert ["ShaderNodeNormalMap", "ShaderNodeBsdfDiffuse", "Normal"] in found["links"]
    assert ["ShaderNodeTexImage", "ShaderNodeBsdfDiffuse", "Color"] in found["links"]


@needs_bpy
def test_blender_stays_free_while_a_job_runs_and_can_stop_it(session, tmp_path):
    program = """
import time
running, job = part("running"), part("job")
slow = [sys.executable, "-c", "import time; print('predicting: 40%|', flush=True); time.sleep(60)"]
running.begin(job.Job(slow, Path("."), Path(sys.argv[3])), lambda: "never")
while running.Running.done != 0.4:  # until the job's first line is read
    start = time.time()
    again = running.look()
seen = [again, time.time() - start, running.Running.done, running.Running.message]
seen += [bpy.app.timers.is_registered(running.look), bpy.ops.intrinsic_lora.predict.poll()]
bpy.ops.intrinsic_lora.cancel()
print(json.dumps([*seen, running.look(), running.Running.message, running.Running.failed]))
"""
    found = session(program, tmp_path / "log.txt")
    again, took, done, message, registered, may_start, *end = found
    assert again == 0.25 and took < 10 and done == 0.4 and message == "predicting"
    assert registered and not may_start
    assert end == [None, "cancelled", True]


@needs_bpy
def test_the_panels_button_exports_training_data(session, tmp_path):
    program = """
chosen.project, chosen.python = sys.argv[3], sys.argv[4]
settings = scene.intrinsic_lora
settings.folder, settings.cameras, settings.width, settings.height, settings.samples = sys.argv[5], 2, 32, 32, 1
bpy.ops.intrinsic_lora.export(wait=True)
print(json.dumps([part("running").Running.message]))
"""
    (messages,) = session(program, ROOT, ROOT / ".venv" / "bin" / "python", tmp_path / "data")
    assert messages == f"training data in {tmp_path / 'data'}"
    assert len(list((tmp_path / "data" / "albedo" / "labels").glob("room_*.png"))) == 2


@needs_bpy
def test_missing_settings_are_reported_in_one_line(session, tmp_path):
    program = """
predict, settings = bpy.ops.intrinsic_lora.predict, scene.intrinsic_lora
messages = [refused(predict)]
settings.image = bpy.data.images.new("a", 8, 8)
messages += [refused(predict)]
chosen.project = sys.argv[3]
messages += [refused(predict)]
chosen.python, chosen.flags = sys.argv[4], "--lora /no/lora"
messages += [refused(predict)]
settings.source = "RENDER"
messages += [refused(predict), refused(bpy.ops.intrinsic_lora.plane), refused(bpy.ops.intrinsic_lora.export)]
print(json.dumps(messages))
"""
    bare = tmp_path / "project"
    bare.mkdir()
    (bare / "predict.py").symlink_to(ROOT / "predict.py")
    messages = session(program, bare, ROOT / ".venv" / "bin" / "python")
    wanted = ["choose an image", "Project is not the folder", "run make install in", "/no/lora", "render first"]
    wanted += ["choose, or predict", "is not relative"]
    for line, words in zip(messages[:6], wanted[:6], strict=True):
        assert words in line and "Traceback" not in line
