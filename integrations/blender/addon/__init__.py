"""Intrinsic LoRA in Blender: maps of an image, as images and as a material; training data from a scene.

The prediction runs in a process of the project's own Python, never in Blender's: the two bring different numpy.
`python -m integrations.blender.addon_zip` packs this folder as an extension (Blender 4.2 and newer).
"""

import bpy

from . import operators, panel, running, settings

CLASSES = (*settings.CLASSES, *operators.CLASSES, *panel.CLASSES)


def register() -> None:
    for one in CLASSES:
        bpy.utils.register_class(one)
    bpy.types.Scene.intrinsic_lora = bpy.props.PointerProperty(type=settings.Settings)


def unregister() -> None:
    running.stop()
    if bpy.app.timers.is_registered(running.look):
        bpy.app.timers.unregister(running.look)
    del bpy.types.Scene.intrinsic_lora
    for one in reversed(CLASSES):
        bpy.utils.unregister_class(one)
