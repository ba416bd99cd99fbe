"""An image's render passes, with the compositor of Blender 4.2 to 4.5 or the new one of Blender 5.0."""

from pathlib import Path

import bpy
import numpy as np

COLOUR = {
    "picture": ("Image",),
    "albedo": ("DiffCol", "Diffuse Color"),  # the names in Blender 4 and in Blender 5
    "direct": ("DiffDir", "Diffuse Direct"),
    "indirect": ("DiffInd", "Diffuse Indirect"),
}
GEOMETRY = {"normal": ("Normal",), "depth": ("Depth",)}
FIVE = bpy.app.version >= (5, 0, 0)


def render(scene, raw: Path, passes: dict[str, tuple], samples: int, width: float) -> dict[str, np.ndarray]:
    """Name -> float32 (H,W,3), or (H,W) of depth; rows from the top. width: of the pixel filter, in pixels."""
    scene.cycles.samples, scene.cycles.filter_width = samples, width
    scene.render.use_compositing = True
    tree = _empty_tree(scene)
    layers = tree.nodes.new("CompositorNodeRLayers")
    found = {name: next(layers.outputs[one] for one in names if one in layers.outputs)
             for name, names in passes.items()}  # fmt: skip
    (_files_of_5 if FIVE else _files_of_4)(tree, raw, found)
    tree.links.new(layers.outputs["Image"], _final(tree))
    bpy.ops.render.render(write_still=False)
    end = "" if FIVE else f"{scene.frame_current:04}"
    return {name: read(raw / f"{name}_{end}.exr", name == "depth") for name in passes}


def _empty_tree(scene):
    if not FIVE:
        scene.use_nodes = True
        scene.node_tree.nodes.clear()
        return scene.node_tree
    if scene.compositing_node_group is None:
        scene.compositing_node_group = bpy.data.node_groups.new("intrinsic-lora", "CompositorNodeTree")
    tree = scene.compositing_node_group
    tree.nodes.clear()
    tree.interface.clear()
    return tree


def _final(tree):
    """The socket of the image that the render result shows."""
    if not FIVE:
        return tree.nodes.new("CompositorNodeComposite").inputs["Image"]
    tree.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
    return tree.nodes.new("NodeGroupOutput").inputs["Image"]


def _files_of_4(tree, raw: Path, found: dict) -> None:
    """One EXR of 32 bits for each pass: <raw>/<name>_<frame>.exr."""
    node = tree.nodes.new("CompositorNodeOutputFile")
    node.base_path = str(raw)
    node.format.file_format, node.format.color_depth = "OPEN_EXR", "32"
    node.file_slots.clear()
    for name, socket in found.items():
        node.file_slots.new(f"{name}_")
        tree.links.new(socket, node.inputs[-1])


def _files_of_5(tree, raw: Path, found: dict) -> None:
    """The same; one node for each pass, because a node's files share one beginning of their names."""
    for name, socket in found.items():
        node = tree.nodes.new("CompositorNodeOutputFile")
        node.directory, node.file_name = str(raw), f"{name}_"
        node.format.media_type = "IMAGE"
        node.format.file_format, node.format.color_depth = "OPEN_EXR", "32"
        node.file_output_items.clear()
        node.file_output_items.new({"VALUE": "FLOAT"}.get(socket.type, socket.type), "")
        tree.links.new(socket, node.inputs[0])


def read(file: Path, one_channel: bool) -> np.ndarray:
    """An EXR's numbers as they are, and the file is removed: float32 (H,W,3), or (H,W); rows from the top."""
    image = bpy.data.images.load(str(file))
    image.colorspace_settings.name = "Non-Color"
    pixels = np.empty(len(image.pixels), np.float32)
    image.pixels.foreach_get(pixels)
    pixels = pixels.reshape(image.size[1], image.size[0], image.channels)[::-1]
    bpy.data.images.remove(image)
    file.unlink()
    return pixels[..., 0].copy() if one_channel else pixels[..., :3].copy()
