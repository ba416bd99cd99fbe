"""Predicted normals and albedo as a material: on a plane in front of the camera, or on the active object.

The maps' normals are in the camera's axes: x right, y up, z toward the viewer (`--frame opengl`). The Normal Map node
reads its image in the surface's tangent axes. On a plane that faces the camera squarely, with the image upright on it,
the two are the same, so lamps light the plane as they would light what the image shows. On another surface the map is
right as far as that surface was photographed head-on: for a photographed wall or floor, not for a room around a
sphere.
"""

import bpy
from mathutils import Vector

NORMAL, ALBEDO, NORMAL_MAP = "Intrinsic LoRA normal", "Intrinsic LoRA albedo", "Intrinsic LoRA normal map"


def wire(material, normal=None, albedo=None) -> None:
    """Put the images into the material's shader. Nodes of an earlier call are used again."""
    material.use_nodes = True
    tree = material.node_tree
    shader = _shader(tree)
    colour = next(shader.inputs[name] for name in ("Base Color", "Color") if name in shader.inputs)
    if albedo is not None:
        image = _node(tree, "ShaderNodeTexImage", ALBEDO, (-700, 300))
        image.image = albedo
        tree.links.new(image.outputs["Color"], colour)
    if normal is not None:
        image = _node(tree, "ShaderNodeTexImage", NORMAL, (-700, 0))
        image.image = normal
        turned = _node(tree, "ShaderNodeNormalMap", NORMAL_MAP, (-300, 0))
        turned.space = "TANGENT"
        tree.links.new(image.outputs["Color"], turned.inputs["Color"])
        tree.links.new(turned.outputs["Normal"], shader.inputs["Normal"])


def _shader(tree):
    """The shader of the material's output; a new Diffuse BSDF, albedo's own, where it has none with a colour."""
    output = tree.get_output_node("ALL") or tree.nodes.new("ShaderNodeOutputMaterial")
    link = next(iter(output.inputs["Surface"].links), None)
    if link and "Normal" in link.from_node.inputs and {"Base Color", "Color"} & set(link.from_node.inputs.keys()):
        return link.from_node
    shader = tree.nodes.new("ShaderNodeBsdfDiffuse")
    tree.links.new(shader.outputs[0], output.inputs["Surface"])
    return shader


def _node(tree, kind: str, name: str, place: tuple[float, float]):
    node = tree.nodes.get(name)
    if node is None:
        node = tree.nodes.new(kind)
        node.name = node.label = name
        node.location = place
    return node


def material_of(thing):
    """The active material of an object, created if it has none."""
    if thing.active_material is None:
        thing.active_material = bpy.data.materials.new("Intrinsic LoRA")
    return thing.active_material


def camera_plane(scene, size: tuple[int, int], distance: float):
    """A plane that faces the scene's camera, `distance` metres ahead and moving with it, as large as an image of
    `size` (width, height) that just fits into the view. Its material is a new Diffuse BSDF.
    """
    camera = scene.camera
    frame = [Vector(corner) for corner in camera.data.view_frame(scene=scene)]  # at some depth, in the camera's axes
    if camera.data.type != "ORTHO":
        frame = [corner * (distance / -corner.z) for corner in frame]
    low, high = (Vector((f(c.x for c in frame), f(c.y for c in frame))) for f in (min, max))
    middle, extent = (low + high) / 2, high - low
    scale = min(extent.x / size[0], extent.y / size[1]) / 2
    x, y = scale * size[0], scale * size[1]
    corners = [(middle.x + sx * x, middle.y + sy * y, -distance) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    mesh = bpy.data.meshes.new("Intrinsic LoRA")
    mesh.from_pydata(corners, [], [(0, 1, 2, 3)])
    for loop, place in zip(mesh.uv_layers.new(name="UVMap").data, ((0, 0), (1, 0), (1, 1), (0, 1))):
        loop.uv = place
    plane = bpy.data.objects.new("Intrinsic LoRA", mesh)
    scene.collection.objects.link(plane)
    plane.parent = camera
    material = bpy.data.materials.new("Intrinsic LoRA")
    material.use_nodes = True
    material.node_tree.nodes.clear()
    mesh.materials.append(material)
    return plane
