"""Other people's .blend files in a real bpy: no setting of theirs changes an export unnoticed.

All cases are rendered by one process, `render.main` being called for each. A case is the plain scene, a floor at z = 0
with a cube on it, changed by a line of Python: s is the scene, c the camera, cube the cube, floor the floor.
"""

import json

import numpy as np
import pytest
from blender_scene import export, in_blender, needs_bpy
from helpers import ROOT

WIDTH, HEIGHT, FOV, EYE, TILT = 64, 48, 50.0, (0.3, -0.2, 2.0), 35.0  # pixels, degrees, metres, degrees from below
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
        material.node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value = (*rgb, 1)
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
RESET = {  # the kind -> (what it changes, what the note names)
    "dof": ("c.data.dof.use_dof, c.data.dof.focus_distance, c.data.dof.aperture_fstop = True, 0.4, 0.1", "depth of fie"
        "ld of Camera"),
    "animated_dof": ("c.data.dof.focus_distance = 0.4; c.data.dof.use_dof = True; c.data.dof.keyframe_insert('use_dof')"
        , "depth of field of Camera"),
    "stereo": ("s.render.use_multiview = True", "use_multiview"),
    "motion_blur": ("s.render.use_motion_blur = True; c.keyframe_insert('location', frame=1); c.location.x = 3; c.keyf"
        "rame_insert('location', frame=4)", "use_motion_blur"),
    "pixel_aspect": ("s.render.pixel_aspect_x = 2", "pixel_aspect_x 2"),
    "percentage": ("s.render.resolution_percentage = 50", "resolution_percentage 50"),
    "border": ("s.render.use_border, s.render.border_min_x = True, 0.5", "use_border"),
    "crop": ("s.render.use_border, s.render.use_crop_to_border, s.render.border_max_y = True, True, 0.5", "use_crop_to"),
    "simplify": ("s.render.use_simplify, s.render.simplify_subdivision_render = True, 0", "use_simplify"),
    "film_transparent": ("s.render.film_transparent = True", "film_transparent"),
    "freestyle": ("s.render.use_freestyle = True", "use_freestyle"),
    "single_layer": ("s.render.use_single_layer = True", "use_single_layer"),
    "no_compositing": ("s.render.use_compositing = False", "use_compositing"),
    "file_format": ("f = s.render.image_settings; f.file_format, f.color_mode, f.color_depth, f.exr_codec = 'OPEN_EXR',"
        " 'BW', '16', 'DWAA'; s.render.use_file_extension = False", None),
    "colour_override": ("f = s.render.image_settings; f.file_format = 'OPEN_EXR'; f.color_management = 'OVERRIDE'; f.v"
        "iew_settings.exposure = 3", None),
    "stamp": ("s.render.use_stamp = True", None),
    "persistent": ("s.render.use_persistent_data = True", None),
    "view": ("v = s.view_settings; v.view_transform, v.exposure, v.gamma, v.use_curve_mapping = 'Raw', 2, 0.5, True",
        "view_settings.exposure 2"),
    "look": ("s.view_settings.look = 'AgX - Punchy'", "view_settings.look"),
    "display": ("s.display_settings.display_device = 'Display P3'", "display_device"),
    "exposure": ("s.cycles.film_exposure = 0.25", "film_exposure 0.25"),
    "pixel_filter": ("s.cycles.pixel_filter_type, s.cycles.filter_width = 'GAUSSIAN', 6", "pixel_filter_type GAUSSIAN"),
    "sampling": ("s.cycles.sample_offset, s.cycles.sampling_pattern = 5, 'TABULATED_SOBOL'", "sample_offset 5"),
    "time_limit": ("s.cycles.time_limit = 1e-6", "time_limit"),
    "adaptive": ("s.cycles.use_adaptive_sampling, s.cycles.adaptive_threshold = True, 1.0", None),
    "denoiser": ("s.cycles.use_denoising, s.cycles.denoising_prefilter = True, 'NONE'", None),
    "bounces": ("s.cycles.max_bounces = 0", "max_bounces 0"),
    "clamp": ("s.cycles.sample_clamp_direct = 0.01", "sample_clamp_direct"),
    "fast_gi": ("s.cycles.use_fast_gi = True", "use_fast_gi"),
    "culling": ("s.cycles.use_distance_cull, s.cycles.distance_cull_margin = True, 0.1; cube.cycles.use_distance_cull ="
        " True", "use_distance_cull"),
    "material_override": ("V.material_override = bpy.data.materials.new('clay')", "material_override clay"),
    "world_override": ("w = bpy.data.worlds.new('other'); w.color = (5, 5, 5); V.world_override = w" " if hasattr(V, "
        "'world_override') else None", None),
    "layer_samples": ("V.samples = 9", "view_layer.samples 9"),
    "no_solid": ("V.use_solid = False", "use_solid False"),
    "light_groups": ("V.lightgroups.add(name='key')", None),
    "mist": ("s.world = bpy.data.worlds.new('w'); s.world.color = (0, 0, 0); s.world.mist_settings.use_mist = True", None),
    "layers": ("s.view_layers.new('second'); s.view_layers[0].use = False", "view layer ViewLayer"),
    "layers_reversed": ("s.view_layers.new('second').use = False", "view layer second"),
    "marker": ("o = bpy.data.objects.new('ZOther', bpy.data.cameras.new('o')); s.collection.objects.link(o); o.location"
        " = 0, 0, 9; s.timeline_markers.new('m', frame=1).camera = o", "timeline markers"),
    "animated": ("s.render.use_border = True; s.render.border_max_x = 0.5; s.r"
        "ender.keyframe_insert('use_border')", "animation of the scene's settings"),
    "driven": ("s.cycles.driver_add('film_exposure').driver.expression = '3 + 2'", "animation of the scene's settings"),
    "compositor": ("tree(s)", "compositor nodes"),
    "sequencer": ("e = s.sequence_editor_create(); getattr(e, 'strips', getattr(e, 'sequences', None)).new_effect("
        "'c', 'COLOR', 1, 1, **({'frame_end': 50} if bpy.app.version < (5,) else {'length': 50}))", "sequencer"),
}  # fmt: skip
TREE = """
def tree(s):
    if bpy.app.version < (5,):
        s.use_nodes = True
        t, end = s.node_tree, None
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
REFUSED = {
    "panorama": ("c.data.type = 'PANO'", "the camera Camera is pano"),
    "fisheye": ("c.data.type = 'PANO'; (c.data if hasattr(c.data, 'panorama_type') else c.data.cycles).panorama_type ="
        " 'FISHEYE_EQUIDISTANT'", "perspective or orthographic one: set Lens, Type"),
    "sheared": ("p = bpy.data.objects.new('rig', None); s.collection.objects.link(p); p.scale = 1, 1.4, 1; c.parent = p;"
        " c.rotation_euler.z = 0.7", "is sheared by the scale of its parents"),
    "no_size": ("c.scale = 1, 0, 1", "has a scale of 0"),
    "two_layers": ("s.view_layers.new('second')", "2 of its view layers are rendered (ViewLayer, second)"),
    "no_layer": ("V.use = False", "0 of its view layers are rendered (none)"),
    "holdout_collection": ("k = bpy.data.collections.new('cut'); s.collection.children.link(k); k.objects.link(cube); V."
        "layer_collection.children['cut'].holdout = True", "the collection cut is a holdout"),
    "holdout_object": ("cube.is_holdout = True", "turn Holdout off"),
    "shadow_catcher": ("floor.is_shadow_catcher = True", "the object Plane is not rendered as it looks; turn Shadow"),
    "excluded_camera": ("k = bpy.data.collections.new('out'); s.collection.children.link(k); s.collection.objects.unlink"
        "(c); k.objects.link(c); V.layer_collection.children['out'].exclude = True", "is in no collection of the view "
        "layer"),
    "hostile_name": ("c.data.type = 'PANO'; c.name = 'a\\nnote: forged\\x1b[2J'", "the camera a\\nnote: forged\\x1b[2J"),
}  # fmt: skip
KEPT = {  # what it changes, and the camera that it leaves: see `floor`
    "plain": ("", {}),
    "ortho": ("c.data.type, c.data.ortho_scale = 'ORTHO', 2", {"ortho": 2}),
    "shift": ("c.data.shift_x, c.data.shift_y = 0.1, 0.2", {"shift": (0.1, 0.2)}),
    "fit": ("c.data.sensor_fit, c.data.sensor_height = 'VERTICAL', 24; c.data.angle = math.radians(40)",
        {"fov": 2 * np.degrees(np.arctan(np.tan(np.radians(20)) * WIDTH / HEIGHT))}),
    "scaled": ("c.scale = 0.5, 3, 2", {}),
    "scaled_parent": ("p = bpy.data.objects.new('rig', None); s.collection.objects.link(p); p.scale = 2, 2, 2; c.parent ="
        " p; c.location = [x / 2 for x in c.location]", {}),
    "constrained": ("p = bpy.data.objects.new('goal', None); s.collection.objects.link(p); p.location = c.location; c.lo"
        "cation = 9, 9, 9; c.constraints.new('COPY_LOCATION').target = p", {}),
    "mirrored": ("c.scale = -1, 1, 1", {"mirror": True}),
    "centimetres": ("s.unit_settings.scale_length = 0.01", {"metres": 0.01}),
    "imperial": ("s.unit_settings.system, s.unit_settings.scale_length = 'IMPERIAL', 2", {"metres": 2}),
    "subframe": ("s.frame_set(3, subframe=0.5); c.keyframe_insert('location', frame=3.5); c.location.z = 5; c.keyframe_i"
        "nsert('location', frame=9); s.frame_set(3, subframe=0.5)", {}),
    "clip": ("c.data.clip_end = 2.6", {"clip": 2.6}),
    "excluded": ("k = bpy.data.collections.new('out'); s.collection.children.link(k); bpy.ops.mesh.primitive_cube_add(si"
        "ze=9); b = bpy.context.object; s.collection.objects.unlink(b); k.objects.link(b); V.layer_collection.children["
        "'out'].exclude = True", {}),
}  # fmt: skip
WARNED = {
    "no_units": ("s.unit_settings.system, s.unit_settings.scale_length = 'NONE', 0.01", "one unit is taken for a metre"),
    "missing_image": ("i = bpy.data.images.new('bark', 8, 8); i.source = 'FILE'; i.filepath = '//no.png'; n = cube.data."
        "materials[0].node_tree.nodes.new('ShaderNodeTexImage'); n.image = i", "1 of its files are missing, which"),
    "script": ("d = cube.driver_add('location', 0).driver; d.expression = '__import__(\"os\").getpid() * 0'", "its Pytho"
        "n was not run"),
}  # fmt: skip


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """(folder, kind -> the lines that the render printed for the user)."""
    folder = tmp_path_factory.mktemp("state")
    kinds = {kind: one[0] for table in (KEPT, RESET, REFUSED, WARNED) for kind, one in table.items()}
    (folder / "kinds.json").write_text(json.dumps(kinds))
    out = in_blender(TREE + PROGRAM, folder, ROOT / "integrations" / "blender")
    return folder, json.loads(out.splitlines()[-1])


def passes(folder, kind: str) -> dict[str, np.ndarray]:
    with np.load(folder / kind / "a_0000.npz") as file:
        return dict(file)


def floor(ortho=None, shift=(0, 0), fov=FOV, mirror=False, metres=1, clip=np.inf) -> tuple[np.ndarray, np.ndarray]:
    """(depth in metres along the camera's axis, inf beyond `clip` units; normal, x right, y down, z forward) of the
    floor, by geometry.
    """
    column, row = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    width = ortho or 2 * np.tan(np.radians(fov / 2))  # of the image plane, at a distance of 1 where it is a pinhole's
    x = ((column - WIDTH / 2) / WIDTH + shift[0]) * width
    y = ((HEIGHT / 2 - row) / WIDTH + shift[1]) * width
    c, s = np.cos(np.radians(TILT)), np.sin(np.radians(TILT))
    up = np.array([0, s, c])  # the world's z in the camera's axes: x right, y up, z back
    height = EYE[2] + (y * s if ortho else 0)
    depth = height / (c if ortho else c - y * s)  # down the axis a step of 1 is c lower, and with y a share higher
    assert (depth + 0 * x > 0).all()
    return np.where(depth < clip, depth, np.inf) * metres, up * (1, -1, -1)


@needs_bpy
@pytest.mark.parametrize("kind", RESET)
def test_a_setting_of_the_file_does_not_reach_the_maps(kind, rendered):
    folder, lines = rendered
    plain, found = passes(folder, "plain"), passes(folder, kind)
    for name, values in plain.items():
        assert np.array_equal(found[name], values), (name, lines[kind])
    named = RESET[kind][1]
    if named is None:
        assert lines[kind] == []
    else:
        (line,) = lines[kind]
        assert line.startswith("note: reset to Blender's defaults: ") and named in line


@needs_bpy
@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_be_neither_kept_nor_reset_is_refused(kind, rendered):
    folder, lines = rendered
    (line,) = lines[kind]
    assert line.startswith("error: ") and REFUSED[kind][1] in line and line.isprintable()
    assert not list((folder / kind).iterdir())


@needs_bpy
@pytest.mark.parametrize("kind", KEPT)
def test_kept_cameras_see_the_floor_where_geometry_has_it(kind, rendered):
    folder, lines = rendered
    found, options = passes(folder, kind), KEPT[kind][1]
    depth, up = floor(**options)
    seen = np.where(found["depth"] < found["clip_end"], found["depth"] * found["metres"], np.inf)
    axes = found["to_camera"] * (np.array([1, -1, -1])[:, None])  # rows: the world's directions of x right, y down, z
    normal = found["normal"] @ axes.T
    is_floor = (
        (found["normal"] @ (0, 0, 1) > 0.9999) & (seen < np.inf) if "clip" not in options else np.isfinite(depth)
    )
    is_floor &= np.abs(found["albedo"] - (0.5, 0.25, 0.1)).max(-1) < 0.01  # not the top of the cube
    assert is_floor.mean() > 0.2
    assert np.abs(seen / depth - 1)[is_floor].max() < 1e-4
    assert np.abs(normal - up)[is_floor].max() < 1e-4
    if "clip" in options:
        assert np.isinf(seen[np.isinf(depth)]).all() and np.isinf(depth).any()
    if options.get("mirror"):
        plain = passes(folder, "plain")
        assert np.allclose(found["depth"], plain["depth"][:, ::-1], rtol=1e-3)
        assert np.abs(found["albedo"] - plain["albedo"][:, ::-1]).mean() < 0.02
    assert lines[kind] == []


@needs_bpy
@pytest.mark.parametrize("kind", WARNED)
def test_the_user_hears_what_the_file_lacks(kind, rendered):
    folder, lines = rendered
    (line,) = lines[kind]
    assert line.startswith("warning: ") and WARNED[kind][1] in line
    assert passes(folder, kind)["metres"] == 1


@needs_bpy
def test_the_command_prints_the_note_and_the_error(rendered, tmp_path):
    folder, _ = rendered
    done = export(folder / "exposure.blend", tmp_path / "a", "--from_file", "--samples", 1)
    assert "exposure.blend: reset to Blender's defaults: cycles.film_exposure 0.25\n" in done.stdout
    export(folder / "script.blend", tmp_path / "d", "--from_file", "--samples", 1)  # bpy itself crashes at its end
    done = export(folder / "no_units.blend", tmp_path / "b", "--samples", 1, "--cameras", 1)
    assert "warning: " in done.stderr and "one unit is taken for a metre" in done.stderr
    done = export(folder / "panorama.blend", tmp_path / "c", "--from_file", check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "panorama.blend: the camera Camera" in done.stderr
