"""Pieces that the rooms of `room_scenes.py` are made of: materials, solids and walls. Runs in a Python that has `bpy`.

Metres, z up. A piece has its middle at `at` (x, y) and is turned by `turn` degrees about z. Materials are procedural,
with patterns in the object's own coordinates, so that no file is needed.
"""

import math

import bpy

Colour = tuple[float, float, float]  # linear, the share of light that is sent back


def material(name: str, first: Colour, second: Colour | None = None, pattern: str = "", scale: float = 4, gloss=False):
    """One material: `first`, or a pattern of both: NOISE, CHECKER, BRICK, WAVE (wood, stripes). gloss: varnished."""
    made = bpy.data.materials.new(name)
    made.use_nodes = True
    nodes, links = made.node_tree.nodes, made.node_tree.links
    nodes.clear()
    shader = nodes.new("ShaderNodeBsdfPrincipled" if gloss else "ShaderNodeBsdfDiffuse")
    if gloss:
        shader.inputs["Roughness"].default_value = 0.35
    colour = shader.inputs["Base Color" if gloss else "Color"]
    colour.default_value = (*first, 1)
    if pattern:
        links.new(patterned(nodes, links, first, second, pattern, scale), colour)
    links.new(shader.outputs[0], nodes.new("ShaderNodeOutputMaterial").inputs["Surface"])
    return made


def patterned(nodes, links, first: Colour, second: Colour, pattern: str, scale: float):
    """The socket of a procedural colour between two."""
    kinds = {"NOISE": "TexNoise", "CHECKER": "TexChecker", "BRICK": "TexBrick", "WAVE": "TexWave"}
    texture = nodes.new(f"ShaderNode{kinds[pattern]}")
    place = nodes.new("ShaderNodeMapping")
    place.inputs["Rotation"].default_value[0] = math.radians(-90 if pattern == "BRICK" else 0)  # courses up the z axis
    links.new(nodes.new("ShaderNodeTexCoord").outputs["Object"], place.inputs["Vector"])
    links.new(place.outputs["Vector"], texture.inputs["Vector"])
    texture.inputs["Scale"].default_value = scale
    if pattern in ("CHECKER", "BRICK"):
        for socket, value in zip(("Color1", "Color2"), (first, second)):
            texture.inputs[socket].default_value = (*value, 1)
        if pattern == "BRICK":
            texture.inputs["Mortar"].default_value = (0.5, 0.48, 0.45, 1)
        return texture.outputs["Color"]
    if pattern == "WAVE":
        texture.inputs["Distortion"].default_value, texture.inputs["Detail"].default_value = 3, 2
    ramp = nodes.new("ShaderNodeValToRGB")
    ramp.color_ramp.elements[0].color, ramp.color_ramp.elements[1].color = (*first, 1), (*second, 1)
    links.new(texture.outputs["Fac" if "Fac" in texture.outputs else 0], ramp.inputs["Fac"])
    return ramp.outputs["Color"]


class Piece:
    """Adds solids of one piece of furniture, in its own axes."""

    def __init__(self, at: tuple[float, float], turn: float = 0):
        self.x, self.y, self.turn = *at, math.radians(turn)

    def _place(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        c, s = math.cos(self.turn), math.sin(self.turn)
        return self.x + c * x - s * y, self.y + s * x + c * y, z

    def _finish(self, made, bevel: float = 0):
        thing = bpy.context.object
        thing.data.materials.append(made)
        if bevel:
            modifier = thing.modifiers.new("bevel", "BEVEL")
            modifier.width, modifier.segments = bevel, 3
        return thing

    def box(self, middle, size, made, bevel: float = 0.01):
        """middle, size: (x, y, z) in the piece's axes."""
        bpy.ops.mesh.primitive_cube_add(size=1, location=self._place(*middle), rotation=(0, 0, self.turn))
        bpy.context.object.scale = size
        bpy.ops.object.transform_apply(location=False, rotation=False, scale=True)
        return self._finish(made, bevel)

    def rod(self, foot, radius, height, made, top: float | None = None):
        """A cylinder on `foot`; with `top` a cone, that radius at its upper end."""
        place = self._place(foot[0], foot[1], foot[2] + height / 2)
        radii = {"radius1": radius, "radius2": radius if top is None else top}
        bpy.ops.mesh.primitive_cone_add(vertices=48, depth=height, location=place, **radii)
        thing = self._finish(made)
        for face in thing.data.polygons:
            face.use_smooth = len(face.vertices) == 4  # the side, not the ends
        return thing

    def ball(self, middle, radius, made, flat: float = 1):
        """A sphere, its height times `flat`."""
        bpy.ops.mesh.primitive_uv_sphere_add(radius=radius, location=self._place(*middle), segments=48, ring_count=24)
        bpy.context.object.scale = (1, 1, flat)
        bpy.ops.object.transform_apply(location=False, rotation=False, scale=True)
        bpy.ops.object.shade_smooth()
        return self._finish(made)


def room(size, floor, walls, ceiling) -> None:
    """Floor, four walls (one material each) and ceiling around the box [0, size]; 10 cm thick."""
    (x, y, z), t, piece = size, 0.1, Piece((0, 0))
    piece.box((x / 2, y / 2, -t / 2), (x + 2 * t, y + 2 * t, t), floor, 0)
    piece.box((x / 2, y / 2, z + t / 2), (x + 2 * t, y + 2 * t, t), ceiling, 0)
    for made, middle, extent in zip(
        walls,
        ((x / 2, -t / 2), (x / 2, y + t / 2), (-t / 2, y / 2), (x + t / 2, y / 2)),
        ((x, t), (x, t), (t, y), (t, y)),
    ):
        piece.box((*middle, z / 2), (*extent, z), made, 0)
