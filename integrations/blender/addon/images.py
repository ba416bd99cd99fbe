"""Blender's images as files for the prediction, and predicted maps as Blender's images."""

import struct
import zlib
from pathlib import Path

import bpy
import numpy as np

TASKS = ("normal", "depth", "albedo", "shading")
# Blender takes every PNG for sRGB and linearises it: right for colours, wrong for directions and distances.
COLOUR_SPACE = {"normal": "Non-Color", "depth": "Non-Color", "albedo": "sRGB", "shading": "sRGB"}


def write_picture(image, scene, path: Path) -> None:
    """`image` as an 8-bit sRGB PNG without alpha. The render result is written as displayed, with its view transform.

    ValueError where there are no pixels.
    """
    if image.type == "RENDER_RESULT":
        settings = scene.render.image_settings
        kept = settings.file_format, settings.color_mode, settings.color_depth
        if bpy.app.version >= (5, 0, 0):
            settings.media_type = "IMAGE"
        settings.file_format, settings.color_mode, settings.color_depth = "PNG", "RGB", "8"
        try:
            image.save_render(str(path), scene=scene)
        except RuntimeError as error:
            raise ValueError("there is no render result yet: render first") from error
        finally:
            settings.file_format, settings.color_mode, settings.color_depth = kept
        return
    width, height = image.size
    if not width * height:
        raise ValueError(f"{image.name}: has no pixels")
    values = np.empty(len(image.pixels), np.float32)
    image.pixels.foreach_get(values)
    values = values.reshape(height, width, image.channels)[::-1]  # rows from the top
    values = values[..., :3] if image.channels >= 3 else values[..., :1].repeat(3, -1)
    if image.is_float and image.colorspace_settings.name != "Non-Color":  # then the numbers are linear light
        values = np.clip(values, 0, 1)
        values = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    path.write_bytes(png((np.clip(values, 0, 1) * 255).round().astype(np.uint8)))


def png(pixels: np.ndarray) -> bytes:
    """uint8 (H,W,3) -> a PNG file."""
    height, width, _ = pixels.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)])
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def load_map(path: Path, task: str):
    """A map's PNG as an image in its colour space, packed into the .blend. A map of that name is replaced in place, so
    that materials show the new one.
    """
    name = path.stem.removesuffix("_16bit")
    image = bpy.data.images.get(name)
    if image is not None and image.get("intrinsic_lora") == task:
        if image.packed_file:
            image.unpack(method="REMOVE")
        image.filepath = str(path)
        image.reload()
    else:
        image = bpy.data.images.load(str(path))
        image.name, image["intrinsic_lora"] = name, task
    image.colorspace_settings.name = COLOUR_SPACE[task]
    image.pack()
    return image


def load_maps(folder: Path, stem: str) -> dict:
    """Task -> image, of the maps written by predict.py for one image."""
    found = {task: folder / task / "predicted" / f"{stem}_{task}_16bit.png" for task in TASKS}
    return {task: load_map(path, task) for task, path in found.items() if path.is_file()}
