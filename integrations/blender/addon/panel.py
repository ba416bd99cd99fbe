"""The panel in the 3D view's sidebar."""

import bpy

from .running import Running


class Panel(bpy.types.Panel):
    bl_idname, bl_label, bl_category = "VIEW3D_PT_intrinsic_lora", "Intrinsic LoRA", "Intrinsic LoRA"
    bl_space_type, bl_region_type = "VIEW_3D", "UI"

    def draw(self, context):
        layout, chosen = self.layout, context.scene.intrinsic_lora
        layout.prop(chosen, "source", expand=True)
        if chosen.source == "IMAGE":
            layout.template_ID(chosen, "image", open="image.open")
        layout.operator("intrinsic_lora.predict", icon="IMAGE_DATA")
        if Running.job is not None:
            layout.progress(factor=Running.done, text=Running.message)
            layout.operator("intrinsic_lora.cancel", icon="X")
        elif Running.message:
            layout.label(text=Running.message, icon="ERROR" if Running.failed else "INFO")
        for task in ("normal", "depth", "albedo", "shading"):
            layout.prop(chosen, task)
        layout.label(text="Normals and albedo onto")
        layout.prop(chosen, "distance")
        layout.operator("intrinsic_lora.plane", icon="MESH_PLANE")
        layout.operator("intrinsic_lora.wire", icon="MATERIAL")


class TrainingData(bpy.types.Panel):
    bl_idname, bl_label, bl_category = "VIEW3D_PT_intrinsic_lora_data", "Training data", "Intrinsic LoRA"
    bl_space_type, bl_region_type, bl_parent_id = "VIEW_3D", "UI", "VIEW3D_PT_intrinsic_lora"

    def draw(self, context):
        for name in ("folder", "cameras", "from_file", "width", "height", "samples"):
            self.layout.prop(context.scene.intrinsic_lora, name)
        self.layout.operator("intrinsic_lora.export", icon="RENDER_STILL")


CLASSES = (Panel, TrainingData)
