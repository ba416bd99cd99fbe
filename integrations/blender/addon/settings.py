"""User settings: the project's folder in the add-on's preferences, what to predict and export in the scene."""

import os
import shlex
import sys
from pathlib import Path

import bpy
from bpy.props import BoolProperty, EnumProperty, FloatProperty, IntProperty, PointerProperty, StringProperty


class Preferences(bpy.types.AddonPreferences):
    bl_idname = __package__

    project: StringProperty(name="Project", subtype="DIR_PATH", description="Folder that holds predict.py")
    python: StringProperty(
        name="Python", subtype="FILE_PATH", description="Of the project's environment (empty: its .venv)"
    )
    flags: StringProperty(
        name="Flags", description="More flags of predict.py, such as --lora runs/normal runs/albedo --device cpu"
    )
    bpy_python: StringProperty(
        name="Blender for exports",
        subtype="FILE_PATH",
        description="A Blender, or a Python with bpy (empty: this one)",
    )

    def draw(self, context):
        for name in ("project", "python", "flags", "bpy_python"):
            self.layout.prop(self, name)


class Settings(bpy.types.PropertyGroup):
    source: EnumProperty(
        name="Source", items=[("IMAGE", "Image", "An image of this file"), ("RENDER", "Render", "The last render")]
    )
    image: PointerProperty(name="Image", type=bpy.types.Image)
    normal: PointerProperty(name="Normal", type=bpy.types.Image)
    depth: PointerProperty(name="Depth", type=bpy.types.Image)
    albedo: PointerProperty(name="Albedo", type=bpy.types.Image)
    shading: PointerProperty(name="Shading", type=bpy.types.Image)
    distance: FloatProperty(name="Distance", default=3, min=0.01, unit="LENGTH", description="From camera to plane")
    folder: StringProperty(name="Folder", subtype="DIR_PATH", default="//training_data")
    cameras: IntProperty(name="Pictures", default=40, min=1)
    from_file: BoolProperty(name="The scene's cameras", description="Instead of places chosen at random")
    width: IntProperty(name="Width", default=512, min=16)
    height: IntProperty(name="Height", default=512, min=16)
    samples: IntProperty(name="Samples", default=128, min=1)


def preferences() -> Preferences:
    return bpy.context.preferences.addons[__package__].preferences


def project() -> tuple[Path, Path]:
    """The project's folder and its Python. ValueError where they are not there."""
    chosen = preferences()
    folder = Path(bpy.path.abspath(chosen.project))
    if not chosen.project or not (folder / "predict.py").is_file():
        raise ValueError("preferences of the add-on: Project is not the folder that holds predict.py")
    own = Path(".venv", "Scripts", "python.exe") if os.name == "nt" else Path(".venv", "bin", "python")
    python = Path(bpy.path.abspath(chosen.python)) if chosen.python else folder / own
    if not python.is_file():
        raise ValueError(f"preferences of the add-on: no Python at {python}; run make install in {folder}")
    return folder, python


def more_flags() -> list[str]:
    return shlex.split(preferences().flags)


def renderer() -> str:
    """The program that the export renders with."""
    chosen = preferences().bpy_python
    return bpy.path.abspath(chosen) if chosen else bpy.app.binary_path or sys.executable


CLASSES = (Preferences, Settings)
