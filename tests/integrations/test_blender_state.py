"""Other people's .blend files in a real bpy: no setting of theirs changes an export unnoticed.

All cases are rendered by one process, which calls `render.main` for each. A case is the plain scene, a floor at z = 0
with a cube on it, changed by a line of Python: s is the scene, V its view layer, c the camera; CHANGES has the rest.
"""

import json

import numpy as np
import pytest
from blender_scene import export, in_blender, needs_bpy
from helpers import ROOT

WIDTH, HEIGHT, FOV, EYE, TILT = 64, 48, 50.0, (0.3, -0.2, 2.0), 35.0  # pixels, degrees, metres, degrees from below
RESET = {  # kind -> (change, name in the note; None: reset without a word, because no render of ours reads it)
    "dof": ("focus(c)", "depth of field of Camera"),
    "animated_dof": ("focus(c); c.data.dof.keyframe_insert('use_dof')", "depth of field of Camera"),
    "stereo": ("s.render.use_multiview = True", "use_multiview"),
    "motion_blur": ("s.render.use_motion_blur = True; keys(c, 'location', {1: c.location, 4: (3, 0, 3)})", "_motion"),
    "pixel_aspect": ("s.render.pixel_aspect_x = 2", "pixel_aspect_x 2"),
    "percentage": ("s.render.resolution_percentage = 50", "resolution_percentage 50"),
    "border": ("s.render.use_border, s.render.border_min_x = True, 0.5", "use_border"),
    "crop": ("s.render.use_border = s.render.use_crop_to_border = True; s.render.border_max_y = 0.5", "use_crop_to"),
    "simplify": ("s.render.use_simplify, s.render.simplify_subdivision_render = True, 0", "use_simplify"),
    "film_transparent": ("s.render.film_transparent = True", "film_transparent"),
    "freestyle": ("s.render.use_freestyle = True", "use_freestyle"),
    "single_layer": ("s.render.use_single_layer = True", "use_single_layer"),
    "no_compositing": ("s.render.use_compositing = False", "use_compositing"),
    "file_format": ("exr(s, color_mode='BW', color_depth='16', exr_codec='DWAA')", None),
    "no_extension": ("s.render.use_file_extension = False", None),
    "colour_override": ("exr(s, color_management='OVERRIDE').view_settings.exposure = 3", None),
    "stamp": ("s.render.use_stamp = True", None),
    "persistent": ("s.render.use_persistent_data = True", None),
    "view": ("v = s.view_settings; v.view_transform, v.gamma, v.use_curve_mapping = 'Raw', 0.5, True", "gamma 0.5"),
    "view_exposure": ("s.view_settings.exposure = 2", "view_settings.exposure 2"),
    "look": ("s.view_settings.look = 'AgX - Punchy'", "view_settings.look"),
    "display": ("s.display_settings.display_device = 'Display P3'", "display_device"),
    "exposure": ("s.cycles.film_exposure = 0.25", "film_exposure 0.25"),
    "pixel_filter": ("s.cycles.pixel_filter_type, s.cycles.filter_width = 'GAUSSIAN', 6", "filter_type GAUSSIAN"),
    "sampling": ("s.cycles.sample_offset, s.cycles.sampling_pattern = 5, 'TABULATED_SOBOL'", "sample_offset 5"),
    "animated_seed": ("s.cycles.use_animated_seed, s.cycles.seed = True, 9", None),
    "time_limit": ("s.cycles.time_limit = 1e-6", "time_limit"),
    "adaptive": ("s.cycles.use_adaptive_sampling, s.cycles.adaptive_threshold = True, 1.0", None),
    "denoiser": ("s.cycles.use_denoising, s.cycles.denoising_prefilter = True, 'NONE'", None),
    "bounces": ("s.cycles.max_bounces = 0", "max_bounces 0"),
    "clamp": ("s.cycles.sample_clamp_direct = 0.01", "sample_clamp_direct"),
    "fast_gi": ("s.cycles.use_fast_gi = True", "use_fast_gi"),
    "culling": ("cull(s.cycles, cube.cycles)", "use_distance_cull"),
    "material_override": ("V.material_override = bpy.data.materials.new('clay')", "material_override clay"),
    "world_override": ("V.world_override = world((5, 5, 5))", "world_override"),
    "layer_samples": ("V.samples = 9", "view_layer.samples 9"),
    "no_solid": ("V.use_solid = False", "use_solid False"),
    "light_groups": ("V.lightgroups.add(name='key')", None),
    "mist": ("s.world = world((0, 0, 0)); s.world.mist_settings.use_mist = True", None),
    "layers": ("s.view_layers.new('second'); s.view_layers[0].use = False", "view layer ViewLayer"),
    "layers_reversed": ("s.view_layers.new('second').use = False", "view layer second"),
    "marker": ("s.timeline_markers.new('m', frame=1).camera = other_camera(s)", "cameras of timeline markers"),
    "animated": ("s.cycles.film_exposure = 5; s.cycles.keyframe_insert('film_exposure')", "animation of the scene's"),
    "driven": ("s.cycles.driver_add('film_exposure').driver.expression = '3 + 2'", "animation of the scene's"),
    "compositor": ("tree(s)", "compositor nodes"),
    "sequencer": ("strip(s)", "sequencer strips"),
}  # fmt: skip
REFUSED = {  # kind -> (change, a part of the error)
    "panorama": ("c.data.type = 'PANO'", "the camera Camera is pano"),
    "fisheye": ("fisheye(c)", "perspective or orthographic one: set Lens, Type"),
    "sheared": ("c.parent = empty(s, (1, 1.4, 1)); c.rotation_euler.z = 0.7", "is sheared by the scale of"),
    "no_size": ("c.scale = 1, 0, 1", "has a scale of 0"),
    "two_layers": ("s.view_layers.new('second')", "2 of its view layers are rendered (ViewLayer, second)"),
    "no_layer": ("V.use = False", "0 of its view layers are rendered (none)"),
    "holdout_collection": ("collection(s, V, cube).holdout = True", "the collection apart is a holdout"),
    "holdout_object": ("cube.is_holdout = True", "turn Holdout off"),
    "shadow_catcher": ("floor.is_shadow_catcher = True", "the object Plane is not rendered as it looks"),
    "excluded_camera": ("collection(s, V, c).exclude = True", "is in no collection of the view layer"),
    "hostile_name": ("c.data.type, c.name = 'PANO', 'a\\nnote: forged\\x1b[2J'", "a\\nnote: forged\\x1b[2J is pano"),
}  # fmt: skip
KEPT = {  # kind -> (change, the camera that it leaves: see `geometry`)
    "plain": ("", {}),
    "ortho": ("c.data.type, c.data.ortho_scale = 'ORTHO', 2", {"ortho": 2}),
    "shift": ("c.data.shift_x, c.data.shift_y = 0.1, 0.2", {"shift": 0.2}),
    "fit": ("c.data.sensor_fit = 'VERTICAL'; c.data.angle = math.radians(40)", {"fov_y": 40}),
    "scaled": ("c.scale = 0.5, 3, 2", {}),
    "scaled_parent": ("c.parent = empty(s, (2, 2, 2)); c.location /= 2", {}),
    "constrained": ("constrain(c, empty(s, at=c.location)); c.location.x = 9", {}),
    "mirrored": ("c.scale = -1, 1, 1", {"mirror": True}),
    "centimetres": ("s.unit_settings.scale_length = 0.01", {"metres": 0.01}),
    "imperial": ("s.unit_settings.system, s.unit_settings.scale_length = 'IMPERIAL', 2", {"metres": 2}),
    "subframe": ("keys(c, 'location', {3.5: c.location, 9: (9, 9, 9)}); s.frame_set(3, subframe=0.5)", {}),
    "clip": ("c.data.clip_end = 2.6", {"clip": 2.6}),
    "excluded": ("collection(s, V, box()).exclude = True", {}),
}  # fmt: skip
WARNED = {  # kind -> (change, a part of the warning)
    "no_units": ("s.unit_settings.system, s.unit_settings.scale_length = 'NONE', 0.01", "one unit is taken for a"),
    "missing_image": ("texture(cube, '//no.png')", "1 of its files are missing, which"),
    "script": ("cube.driver_add('location', 0).driver.expression = '__import__(\"os\").getpid()'", "was not run"),
}  # fmt: skip
CHANGES = """
import bpy

def focus(c):
    c.data.dof.use_dof, c.data.dof.focus_distance, c.data.dof.aperture_fstop = True, 0.4, 0.1

def keys(thing, name, values):
    for frame, value in values.items():
        setattr(thing, name, value)
        thing.keyframe_insert(name, frame=frame)

def exr(s, **settings):
    f = s.render.image_settings
    f.file_format = "OPEN_EXR"
    for name, value in settings.items():
        setattr(f, name, value)
    return f

def cull(settings, thing):
    settings.use_distance_cull, settings.distance_cull_margin, thing.use_distance_cull = True, 0.1, True

def world(rgb):
    made = bpy.data.worlds.new("other")
    made.use_nodes = True
    nodes = made.node_tree.nodes
    nodes.clear()
    light, end = nodes.new("ShaderNodeBackground"), nodes.new("ShaderNodeOutputWorld")
    light.inputs["Color"].default_value = (*rgb, 1)
    made.node_tree.links.new(light.outputs[0], end.inputs[0])
    return made

def empty(s, scale=(1, 1, 1), data=None, at=(0, 0, 0)):
    made = bpy.data.objects.new("ZZ", data)
    made.scale, made.location = scale, at
    s.collection.objects.link(made)
    return made

def other_camera(s):
    return empty(s, data=bpy.data.cameras.new("other"))

def box():
    bpy.ops.mesh.primitive_cube_add(size=9)
    return bpy.context.object

def collection(s, layer, thing):
    made = bpy.data.collections.new("apart")
    s.collection.children.link(made)
    s.collection.objects.unlink(thing)
    made.objects.link(thing)
    return layer.layer_collection.children["apart"]

def constrain(c, goal):
    c.constraints.new("COPY_LOCATION").target = goal

def fisheye(c):
    c.data.type = "PANO"
    (c.data if hasattr(c.data, "panorama_type") else c.data.cycles).panorama_type = "FISHEYE_EQUIDISTANT"

def texture(thing, path):
    image = bpy.data.images.new("bark", 8, 8)
    image.source, image.filepath = "FILE", path
    thing.data.materials[0].node_tree.nodes.new("ShaderNodeTexImage").image = image

def strip(s):
    editor = s.sequence_editor_create()
    length = {"length": 50} if bpy.app.version >= (5, 0, 0) else {"frame_end": 50}
    (editor.strips if hasattr(editor, "strips") else editor.sequences).new_effect("c", "COLOR", 1, 1, **length)

def tree(s):
    if bpy.app.version < (5, 0, 0):
        s.use_nodes = True
        t = s.node_tree
        t.nodes.clear()
        end = t.nodes.new("CompositorNodeComposite")
    else:
        t = s.compositing_node_group = bpy.data.node_groups.new("theirs", "CompositorNodeTree")
        t.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
        end = t.nodes.new("NodeGroupOutput")
    layers, blur = t.nodes.new("CompositorNodeRLayers"), t.nodes.new("CompositorNodeBlur")
    t.links.new(layers.outputs[0], blur.inputs[0])
    t.links.new(blur.outputs[0], end.inputs[0])
"""
PROGRAM = f"""
import bpy, contextlib, io, json, math, os, sys
from pathlib import Path
folder, source = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, source)
import render

def build():
    bpy.ops.wm.read_factory_settings(use_empty=True)
    s = bpy.context.scene
    bpy.ops.mesh.primitive_plane_add(size=400)
    floor = bpy.context.object
    bpy.ops.mesh.primitive_cube_add(size=0.5, location=(0.4, 1.2, 0.25))
    cube = bpy.context.object
    cube.modifiers.new("subdivision", "SUBSURF").render_levels = 2
    for thing, rgb in ((floor, (0.5, 0.25, 0.1)), (cube, (0.1, 0.6, 0.2))):
        material = bpy.data.materials.new("m")
        material.use_nodes = True
        nodes = material.node_tree.nodes
        shader = nodes.new("ShaderNodeBsdfDiffuse")
        shader.inputs["Color"].default_value = (*rgb, 1)
        material.node_tree.links.new(shader.outputs[0], nodes["Material Output"].inputs[0])
        thing.data.materials.append(material)
    bpy.ops.object.light_add(type="SUN", rotation=(0.5, 0.3, 0))
    bpy.context.object.data.energy = 2
    c = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    s.collection.objects.link(c)
    c.data.angle, c.location, c.rotation_euler = math.radians({FOV}), {EYE}, (math.radians({TILT}), 0, 0)
    s.camera = c
    return s, c, cube, floor

found = {{}}
for kind, change in json.loads((folder / "kinds.json").read_text()).items():
    s, c, cube, floor = build()
    V = bpy.context.view_layer
    (folder / kind).mkdir()
    job = {{"scene": str(folder / f"{{kind}}.blend"), "raw": str(folder / kind), "stems": ["a_0000"], "seed": 3}}
    job |= {{"size": [{WIDTH}, {HEIGHT}], "samples": 2, "from_file": True}}
    out = io.StringIO()
    try:
        exec(change)
        bpy.ops.wm.save_as_mainfile(filepath=job["scene"])
        with contextlib.redirect_stdout(out):
            render.main(job)
        found[kind] = [line for line in out.getvalue().splitlines() if line.startswith(("note: ", "warning: "))]
    except SystemExit as error:
        found[kind] = [str(error)]
    except Exception as error:
        found[kind] = [f"failed: {{error!r}}"]
print(json.dumps(found), flush=True)
os._exit(0)  # see render.py
"""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """(folder, kind -> the lines that the render printed for the user)."""
    folder = tmp_path_factory.mktemp("state")
    kinds = {kind: one[0] for table in (KEPT, RESET, REFUSED, WARNED) for kind, one in table.items()}
    (folder / "kinds.json").write_text(json.dumps(kinds))
    out = in_blender(CHANGES + PROGRAM, folder, ROOT / "integrations" / "blender")
    return folder, json.loads(out.splitlines()[-1])


def passes(folder, kind: str) -> dict[str, np.ndarray]:
    with np.load(folder / kind / "a_0000.npz") as file:
        return dict(file)


def geometry(ortho=None, shift=0.0, fov_y=None, mirror=False, metres=1, clip=np.inf) -> tuple[np.ndarray, np.ndarray]:
    """(depth in metres along the camera's axis, inf beyond `clip` units; normal, x right, y down, z forward) of the
    floor. ortho: width of the view. shift: upwards, in widths. fov_y: degrees, of the height. mirror: changes neither.
    """
    width = 2 * np.tan(np.radians(FOV / 2)) if fov_y is None else 2 * np.tan(np.radians(fov_y / 2)) * WIDTH / HEIGHT
    row = np.repeat(np.arange(HEIGHT) + 0.5, WIDTH).reshape(HEIGHT, WIDTH)
    y = ((HEIGHT / 2 - row) / WIDTH + shift) * (ortho or width)  # on the image plane; a pinhole's at a distance of 1
    c, s = np.cos(np.radians(TILT)), np.sin(np.radians(TILT))  # the world's z in the camera's axes is (0, s, c)
    depth = (EYE[2] + y * s) / c if ortho else EYE[2] / (c - y * s)
    return np.where(depth < clip, depth, np.inf) * metres, np.array([0, -s, -c])


@needs_bpy
@pytest.mark.parametrize("kind", RESET)
def test_a_setting_of_the_file_does_not_reach_the_maps(kind, rendered):
    folder, lines = rendered
    plain, named = passes(folder, "plain"), RESET[kind][1]
    found = passes(folder, kind) if (folder / kind / "a_0000.npz").is_file() else lines[kind]
    for name, values in plain.items():
        assert np.array_equal(found[name], values), name
    if named is None:
        assert lines[kind] == []
    else:
        (line,) = lines[kind]
        assert line.startswith("note: reset to Blender's defaults: ") and named in line


@needs_bpy
@pytest.mark.parametrize("kind", REFUSED)
def test_settings_that_cannot_be_kept_or_reset_are_refused(kind, rendered):
    folder, lines = rendered
    (line,) = lines[kind]
    wanted = REFUSED[kind][1].replace("\n", "\\n").replace("\x1b", "\\x1b")
    assert line.startswith("error: ") and wanted in line and line.isprintable()
    assert not list((folder / kind).iterdir())


@needs_bpy
@pytest.mark.parametrize("kind", KEPT)
def test_kept_cameras_see_the_floor_where_geometry_has_it(kind, rendered):
    folder, lines = rendered
    found, options = passes(folder, kind), KEPT[kind][1]
    depth, up = geometry(**options)
    seen = np.where(found["depth"] < found["clip_end"], found["depth"] * found["metres"], np.inf)
    normal = found["normal"] @ found["to_camera"].T * (1, -1, -1)
    is_floor = np.isfinite(depth) & (np.abs(found["albedo"] - (0.5, 0.25, 0.1)).max(-1) < 1e-3)  # no cube in the pixel
    assert is_floor.mean() > 0.2
    assert np.abs(seen[is_floor] / depth[is_floor] - 1).max() < 1e-4
    assert np.abs(normal - up)[is_floor].max() < 1e-4
    if "clip" in options:
        beyond = np.isinf(depth) & (np.arange(WIDTH) < WIDTH / 3)  # where no cube is in front
        assert np.isinf(seen[beyond]).all() and beyond.mean() > 0.1
    if "mirror" in options:
        plain = passes(folder, "plain")
        assert np.abs(found["depth"] / plain["depth"][:, ::-1] - 1).mean() < 1e-2
        assert (
            np.abs(found["albedo"] - plain["albedo"]).mean()
            > 3 * np.abs(found["albedo"] - plain["albedo"][:, ::-1]).mean()
        )
    assert lines[kind] == []


@needs_bpy
@pytest.mark.parametrize("kind", WARNED)
def test_the_user_is_warned_of_what_the_file_lacks(kind, rendered):
    folder, lines = rendered
    (line,) = lines[kind]
    assert line.startswith("warning: ") and WARNED[kind][1] in line
    assert passes(folder, kind)["metres"] == 1


@needs_bpy
def test_the_command_prints_the_note_the_warning_and_the_error(rendered, tmp_path):
    folder, _ = rendered
    done = export(folder / "exposure.blend", tmp_path / "a", "--from_file", "--samples", 1)
    assert "exposure.blend: reset to Blender's defaults: cycles.film_exposure 0.25\n" in done.stdout
    done = export(folder / "script.blend", tmp_path / "b", "--from_file", "--samples", 1)  # bpy crashes at its end
    assert "warning: " in done.stderr and "its Python was not run" in done.stderr
    done = export(folder / "panorama.blend", tmp_path / "c", "--from_file", check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "panorama.blend: the camera Camera" in done.stderr
