"""The operators behind the panel's buttons."""

import tempfile
from pathlib import Path

import bpy
from bpy.props import BoolProperty

from . import images, material, running, settings
from .job import Job
from .running import Running

WAIT = "Return when it has ended: for scripts, and where Blender has no window"


def clean(name: str) -> str:
    """A name that may be a file's."""
    return "".join(one if one.isalnum() or one in "-_." else "_" for one in name)


class Started(bpy.types.Operator):
    """Starts a job, and reports why it cannot."""

    bl_options = {"REGISTER"}  # noqa: RUF012

    @classmethod
    def poll(cls, context):
        return Running.job is None

    def execute(self, context):
        try:
            self.start(context.scene)
        except (ValueError, OSError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        if not (self.wait or bpy.app.background):
            return {"FINISHED"}
        running.wait()
        self.report({"ERROR" if Running.failed else "INFO"}, Running.message)
        return {"CANCELLED" if Running.failed else "FINISHED"}


class Predict(Started):
    """Predict normals, depth, albedo and shading, in a process of its own."""

    bl_idname, bl_label = "intrinsic_lora.predict", "Predict"
    wait: BoolProperty(options={"SKIP_SAVE"}, description=WAIT)

    def start(self, scene):
        chosen = scene.intrinsic_lora
        render = chosen.source == "RENDER"
        image = bpy.data.images.get("Render Result") if render else chosen.image
        if image is None:
            raise ValueError("there is no render result yet: render first" if render else "choose an image")
        folder, python = settings.project()
        work = Path(tempfile.mkdtemp(prefix="intrinsic_lora_"))
        picture = work / f"{clean(Path(image.name).stem)}.png"
        images.write_picture(image, scene, picture)
        words = [str(python), "predict.py", str(picture), "--output_dir", str(work / "maps")]
        words += ["--formats", "png16", "--frame", "opengl", *settings.more_flags()]
        name = scene.name

        def finish() -> str:
            found = images.load_maps(work / "maps", picture.stem)
            for task, made in found.items():
                setattr(bpy.data.scenes[name].intrinsic_lora, task, made)
            if not found:
                raise ValueError(f"no maps in {work}")
            return f"{image_name}: {', '.join(found)}"

        image_name = image.name
        running.begin(Job(words, folder, work / "log.txt"), finish)


class Export(Started):
    """Render this scene from many places, with exact normals, depth, albedo and shading to train on."""

    bl_idname, bl_label = "intrinsic_lora.export", "Export training data"
    wait: BoolProperty(options={"SKIP_SAVE"}, description=WAIT)

    def start(self, scene):
        chosen = scene.intrinsic_lora
        folder, python = settings.project()
        if chosen.folder.startswith("//") and not bpy.data.filepath:
            raise ValueError("save the .blend file first, or choose a folder that is not relative to it")
        out = Path(bpy.path.abspath(chosen.folder))
        out.mkdir(parents=True, exist_ok=True)
        file = Path(bpy.data.filepath)
        if not bpy.data.filepath or bpy.data.is_dirty:  # what is seen is exported, saved or not
            file = Path(tempfile.mkdtemp(prefix="intrinsic_lora_"), f"{clean(file.stem or 'scene')}.blend")
            bpy.ops.wm.save_as_mainfile(filepath=str(file), copy=True)
        words = [str(python), "-m", "integrations.blender.export", str(file), "--out", str(out)]
        words += ["--cameras", str(chosen.cameras), "--size", f"{chosen.width}x{chosen.height}"]
        words += ["--samples", str(chosen.samples), "--bpy_python", settings.renderer()]
        words += ["--from_file"] if chosen.from_file else []

        def count() -> int:
            return len(list(out.glob("raw/*[0-9].npz")))

        log = Path(tempfile.mkdtemp(prefix="intrinsic_lora_"), "log.txt")
        running.begin(Job(words, folder, log, count, chosen.cameras), lambda: f"training data in {out}")


class Cancel(bpy.types.Operator):
    """Stop what is running."""

    bl_idname, bl_label = "intrinsic_lora.cancel", "Cancel"

    @classmethod
    def poll(cls, context):
        return Running.job is not None

    def execute(self, context):
        running.stop()
        return {"FINISHED"}


class Plane(bpy.types.Operator):
    """Put a plane in front of the camera that carries albedo and normals, and can be lit."""

    bl_idname, bl_label = "intrinsic_lora.plane", "Plane in front of the camera"
    bl_options = {"REGISTER", "UNDO"}  # noqa: RUF012

    def execute(self, context):
        chosen, scene = context.scene.intrinsic_lora, context.scene
        shown = chosen.normal or chosen.albedo
        if scene.camera is None or shown is None:
            self.report({"ERROR"}, "the scene has no camera" if shown else "choose, or predict, normal or albedo")
            return {"CANCELLED"}
        plane = material.camera_plane(scene, tuple(shown.size), chosen.distance)
        material.wire(plane.active_material, chosen.normal, chosen.albedo)
        return {"FINISHED"}


class Wire(bpy.types.Operator):
    """Put albedo and normals into the active object's material, at its UV map."""

    bl_idname, bl_label = "intrinsic_lora.wire", "Active object's material"
    bl_options = {"REGISTER", "UNDO"}  # noqa: RUF012

    def execute(self, context):
        chosen, thing = context.scene.intrinsic_lora, context.active_object
        if thing is None or not hasattr(thing.data, "materials") or not (chosen.normal or chosen.albedo):
            self.report({"ERROR"}, "choose, or predict, normal or albedo" if thing else "no object is active")
            return {"CANCELLED"}
        material.wire(material.material_of(thing), chosen.normal, chosen.albedo)
        return {"FINISHED"}


CLASSES = (Predict, Export, Cancel, Plane, Wire)
