"""A defined render state: only the content of a .blend is kept, and no setting that changes the rendered maps.

Every setting of the groups below is set to the value of Blender's factory settings, unless KEPT names it, so that a
setting of a future version is reset too. What changes a map and is part of the content is refused.
"""

import re
from pathlib import Path

import bpy
import numpy as np

GROUPS = ("render", "render.image_settings", "cycles", "view_settings", "display_settings",
    "sequencer_colorspace_settings", "view_layer", "view_layer.cycles")  # fmt: skip
KEPT = {  # what belongs to the content: time, on which animations depend, and the shape of hair
    "render": {"fps", "fps_base", "frame_map_old", "frame_map_new", "hair_type", "hair_subdiv"},
    "view_layer": {"name"},
}
# Reset as well, but not reported: what the command's own flags decide, and what no render of ours reads.
QUIET = re.compile(
    r"cycles\.(samples|seed|use_animated_seed|device|.*denois.*|.*adaptive.*|.*preview.*|debug_.*|bake_.*|.*tile.*)|"
    r"render\.(engine|resolution_[xy]|threads.*|filepath|.*bake.*|.*stamp.*|.*preview.*|line_.*|simplify_gpencil.*|"
    r"simplify_.*|use_lock_interface|use_overwrite|use_placeholder|use_render_cache|metadata_input|use_file_extension|"
    r"use_persistent_data|use_high_quality_normals|image_settings\..*)|"
    r"view_layer\.(active_.*|use_pass_.*|pass_cryptomatte_.*|cycles\..*)"
)
LENS = ("type", "lens", "sensor_fit", "sensor_width", "sensor_height", "shift_x", "shift_y", "clip_start", "clip_end",
    "ortho_scale")  # fmt: skip
TYPES = ("PERSP", "ORTHO")
SOLID = (
    "MESH",
    "CURVE",
    "SURFACE",
    "META",
    "FONT",
    "CURVES",
    "POINTCLOUD",
    "VOLUME",
)  # others have these flags unused

Settings = dict[str, dict[str, object]]  # group -> setting -> value


def defaults() -> Settings:
    """Blender's own settings of all groups. Whatever is open is closed."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    return {name: _values(_part(scene, scene.view_layers[0], name), KEPT.get(name, set())) for name in GROUPS}


def take_over(scene, objects: list, wanted: Settings) -> tuple[list, list[str], list[str]]:
    """Reset `scene` to `defaults`; return copies of the cameras `objects` that have their lens and place alone, what
    was reset, and what the user must know of the content.

    SystemExit with an error line for what is refused.
    """
    warnings = _content(scene)
    layer, changed = _view_layer(scene)
    _check_holdouts(layer)
    cameras = [_camera(scene, layer, one, changed) for one in objects]
    changed += _loose(scene)
    for name in GROUPS:
        changed += _reset(name, _part(scene, layer, name), wanted[name])
    return cameras, changed, warnings


def fail(text: str) -> SystemExit:
    return SystemExit(f"error: {printable(text)}")


def printable(text: str) -> str:
    """Text with names of the file, whose line breaks would end the line, as escapes."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _part(scene, layer, name: str):
    """The holder of a group's settings."""
    first, *rest = name.split(".")
    holder = layer if first == "view_layer" else getattr(scene, first)
    return getattr(holder, rest[0]) if rest else holder


def _values(holder, left_out: set[str]) -> dict[str, object]:
    """Every setting of a holder that can be set. A pointer has to be empty in the defaults, since they are another
    file's: that leaves out what points into the scene itself, such as the active collection.
    """
    names = [one.identifier for one in holder.bl_rna.properties
        if not one.is_readonly and one.type != "COLLECTION" and one.identifier not in left_out]  # fmt: skip
    found = {name: _value(holder, name) for name in names}
    return {name: value for name, value in found.items() if not isinstance(value, bpy.types.bpy_struct)}


def _value(holder, name: str):
    value = getattr(holder, name)
    return value if isinstance(value, str | set) or not hasattr(value, "__len__") else tuple(value)


def _reset(group: str, holder, wanted: dict[str, object]) -> list[str]:
    """Set what differs from `wanted`; return what did. Several rounds: what one setting allows depends on another."""
    before = {name: _value(holder, name) for name in wanted}
    for _ in range(3):
        for name, value in wanted.items():
            if _value(holder, name) != value:
                try:
                    setattr(holder, name, value)
                except (TypeError, AttributeError, ValueError):
                    continue  # perhaps in the next round
    changed = [name for name, value in wanted.items() if before[name] != value and not _quiet(group, name)]
    for name in changed:
        if _value(holder, name) != wanted[name]:
            raise fail(f"{group}.{name} is {_short(before[name])}, and cannot be reset; set it to {wanted[name]} in "
                "Blender")  # fmt: skip
    return [f"{group}.{name} {_short(before[name])}" for name in changed]


def _quiet(group: str, name: str) -> bool:
    return QUIET.fullmatch(f"{group}.{name}") is not None


def _short(value) -> str:
    return f"{value:g}" if isinstance(value, float) else getattr(value, "name", str(value))[:60]


def _view_layer(scene):
    """The one view layer that the file renders; the others are removed, so that it is the render's and Blender's."""
    used = [one for one in scene.view_layers if one.use]
    if len(used) != 1:
        names = ", ".join(one.name for one in used[:5]) or "none"
        raise fail(f"{len(used)} of its view layers are rendered ({names}), and one is exported; leave Use for "
            "Rendering on in one of them (View Layer properties)")  # fmt: skip
    layer = used[0]
    bpy.context.window.view_layer = layer
    others = [one.name for one in scene.view_layers if one != layer]
    for name in others:
        scene.view_layers.remove(scene.view_layers[name])
    layer.update()
    return layer, [f"view layer {name}" for name in others]


def _check_holdouts(layer) -> None:
    """Refuse objects that are black in the image but have a depth, or the reverse."""
    stack = [layer.layer_collection]
    while stack:
        one = stack.pop()
        if one.holdout and not one.exclude:
            raise fail(f"the collection {one.name} is a holdout, black in the image; turn Holdout off in the Outliner")
        stack += one.children
    for one in layer.objects:
        if one.type in SOLID and not one.hide_render and (one.is_holdout or one.is_shadow_catcher):
            what = "Holdout" if one.is_holdout else "Shadow Catcher"
            raise fail(f"the object {one.name} is not rendered as it looks; turn {what} off (Object properties, "
                "Visibility), or hide it in renders")  # fmt: skip


def _camera(scene, layer, source, changed: list[str]):
    """A camera of ours at the place of the file's, with its lens; the rest of it, such as focus, stays behind."""
    if source.name not in layer.objects:
        raise fail(f"the camera {source.name} is in no collection of the view layer {layer.name}; include it, or "
            "delete it")  # fmt: skip
    there = source.evaluated_get(layer.depsgraph)
    lens, axes = there.data, np.array(there.matrix_world.to_3x3(), float)
    if lens.type not in TYPES:
        raise fail(f"the camera {source.name} is {lens.type.lower()}; depth along an axis needs a perspective or "
            "orthographic one: set Lens, Type (Camera properties), or delete it")  # fmt: skip
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(axes).all() or lengths.min() < 1e-6:
        raise fail(f"the camera {source.name} has a scale of 0; set it to 1")
    turn = axes / lengths
    if np.abs(turn.T @ turn - np.eye(3)).max() > 1e-3:
        raise fail(f"the camera {source.name} is sheared by the scale of its parents; apply their scale (Object, "
            "Apply, Scale), or delete it")  # fmt: skip
    data = bpy.data.cameras.new("intrinsic-lora")
    for name in LENS:
        setattr(data, name, getattr(lens, name))
    made = bpy.data.objects.new("intrinsic-lora", data)
    scene.collection.objects.link(made)
    place = there.matrix_world.copy()
    for column in range(3):
        for row in range(3):
            place[row][column] = turn[row, column]
    made.matrix_world = place
    if lens.dof.use_dof:
        changed.append(f"depth of field of {source.name}")
    return made


def _loose(scene) -> list[str]:
    """Reset what is not a setting of a group: what would set settings again, and what runs on top of the render."""
    changed = []
    if scene.animation_data:
        scene.animation_data_clear()  # the values of the present frame stay
        changed.append("animation of the scene's settings")
    bound = [one for one in scene.timeline_markers if one.camera]
    for one in bound:
        one.camera = None  # or a render would take its camera instead of ours
    changed += ["cameras of timeline markers"] if bound else []
    if getattr(scene, "compositing_node_group", None) or (hasattr(scene, "node_tree") and scene.use_nodes):
        changed.append("compositor nodes")  # replaced by ours
    if scene.sequence_editor and len(getattr(scene.sequence_editor, "strips_all", None) or
                                     getattr(scene.sequence_editor, "sequences_all", ())):  # fmt: skip
        changed.append("sequencer strips")
    return changed


def _content(scene) -> list[str]:
    """Warnings about missing files, unknown units and code that was not run."""
    space = getattr(getattr(bpy.data, "colorspace", None), "working_space", "Linear Rec.709")  # Blender 5
    if "709" not in space:
        raise fail(f"its working space is {space}; set it to Linear Rec.709 (Scene properties, Color Management)")
    found = []
    if bpy.app.autoexec_fail:
        found.append(f"its Python was not run ({' '.join(bpy.app.autoexec_fail_message.split())[:80]})")
    lost = [one.name for one in bpy.data.images if one.source == "FILE" and one.users and not one.packed_file
            and not _exists(bpy.path.abspath(one.filepath, library=one.library))]  # fmt: skip
    lost += [one.name for one in bpy.data.libraries if not _exists(bpy.path.abspath(one.filepath))]
    if lost:
        found.append(f"{len(lost)} of its files are missing, which Blender renders pink or not at all: "
            + ", ".join(lost[:5]))  # fmt: skip
    units = scene.unit_settings
    if units.system == "NONE" and units.scale_length != 1:
        found.append(f"its unit system is None: one unit is taken for a metre, its scale {units.scale_length:g} is not"
            " used")  # fmt: skip
    return found


def _exists(path: str) -> bool:
    return Path(path).is_file() or "<UDIM>" in path


def metres(scene) -> float:
    """The length of one Blender unit. Without a unit system Blender ignores the scale, too."""
    return 1.0 if scene.unit_settings.system == "NONE" else scene.unit_settings.scale_length
