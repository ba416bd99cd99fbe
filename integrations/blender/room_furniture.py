"""Furniture, lamps and plants of the rooms, from the solids of `room_parts.py`. Runs in a Python that has `bpy`."""

import bpy
from room_parts import Piece


def table(at, turn, size, height, made) -> None:
    piece, (x, y) = Piece(at, turn), size
    piece.box((0, 0, height - 0.02), (x, y, 0.04), made)
    for sx in (-1, 1):
        for sy in (-1, 1):
            piece.rod((sx * (x / 2 - 0.06), sy * (y / 2 - 0.06), 0), 0.03, height - 0.04, made)


def chair(at, turn, made, cushion) -> None:
    table(at, turn, (0.44, 0.44), 0.44, made)
    piece = Piece(at, turn)
    piece.box((0, 0, 0.47), (0.4, 0.4, 0.06), cushion, 0.025)
    piece.box((0, 0.2, 0.75), (0.42, 0.04, 0.5), made)


def sofa(at, turn, width, made, cushion) -> None:
    piece = Piece(at, turn)
    piece.box((0, 0, 0.2), (width, 0.9, 0.4), made, 0.05)
    piece.box((0, 0.36, 0.5), (width, 0.2, 0.6), made, 0.07)
    for side in (-1, 1):
        piece.box((side * (width / 2 - 0.1), 0, 0.32), (0.2, 0.9, 0.6), made, 0.07)
        piece.box((side * width * 0.2, -0.06, 0.46), (width * 0.38, 0.66, 0.16), made, 0.06)
        piece.box((side * width * 0.26, 0.2, 0.66), (0.42, 0.16, 0.36), cushion, 0.07)


def shelf(at, turn, size, made, books, rng) -> None:
    """Open shelf with boards every 35 cm, filled with books of random width, height and material."""
    piece, (x, y, z) = Piece(at, turn), size
    for side in (-1, 1):
        piece.box((side * x / 2, 0, z / 2), (0.03, y, z), made, 0)
    piece.box((0, y / 2, z / 2), (x, 0.02, z), made, 0)
    for level in range(int(z / 0.35) + 1):
        floor, left = level * 0.35 + 0.02, -x / 2 + 0.04
        piece.box((0, 0, floor), (x, y, 0.03), made, 0)
        while left < x / 2 * rng.uniform(0.5, 0.95) and floor + 0.3 < z:
            width, height = rng.uniform(0.03, 0.07), rng.uniform(0.18, 0.29)
            piece.box((left, 0, floor + 0.015 + height / 2), (width, y * 0.7, height), rng.choice(books), 0.004)
            left += width + 0.004


def lamp(at, size, watts: float, colour=(1, 0.95, 0.88)) -> None:
    """A soft light: an area that looks down. The camera does not see it."""
    bpy.ops.object.light_add(type="AREA", location=at)
    light = bpy.context.object
    light.data.shape, light.data.size, light.data.size_y = "RECTANGLE", *size
    light.data.energy, light.data.color, light.visible_camera = watts, colour, False


def picture(at, turn, size, frame, image) -> None:
    piece = Piece(at[:2], turn)
    piece.box((0, 0, at[2]), (size[0], 0.04, size[1]), frame)
    piece.box((0, -0.02, at[2]), (size[0] - 0.1, 0.03, size[1] - 0.1), image, 0)


def standing_lamp(at, metal, shade) -> None:
    piece = Piece(at)
    piece.rod((0, 0, 0), 0.14, 0.03, metal)
    piece.rod((0, 0, 0.03), 0.015, 1.4, metal)
    piece.rod((0, 0, 1.35), 0.24, 0.3, shade, 0.14)


def plant(at, pot, leaf, rng) -> None:
    piece = Piece(at)
    piece.rod((0, 0, 0), 0.13, 0.3, pot, 0.18)
    for _ in range(14):
        middle = (rng.gauss(0, 0.13), rng.gauss(0, 0.13), rng.uniform(0.4, 0.95))
        piece.ball(middle, rng.uniform(0.06, 0.14), leaf, 0.8)
