"""Random rooms: four walls, floor and ceiling, a lamp, and spheres, boxes and cylinders on the floor or on boxes."""

import numpy as np

from miniworld.render.materials import PALETTE, draw_material
from miniworld.render.shapes import Box, Cylinder, Sphere
from miniworld.render.world import Camera, Light, Scene, Thing, described, free_spot

COLOURS = list(PALETTE)
WALLS = ("white", "grey", "yellow", "orange", "pink", "green", "teal", "blue", "purple", "red", "brown")
FLOORS = ("brown", "grey", "white", "red", "blue", "green", "black", "yellow")


def draw_room(rng: np.random.Generator) -> Scene:
    """A room 4 to 8 m wide and deep, seen from its near end."""
    half = (rng.uniform(2.0, 4.0), rng.uniform(1.2, 1.7), rng.uniform(2.0, 4.0))
    camera = Camera(
        position=(half[0] * rng.uniform(-0.6, 0.6), rng.uniform(1.0, 1.9), half[2] * rng.uniform(0.6, 0.92)),
        yaw=0.0,
        pitch=np.radians(rng.uniform(-22, 3)),
        fov=np.radians(rng.uniform(55, 82)),
    )
    # Aim at a point of the middle of the room, so that looking from the left means looking to the right.
    target = half[0] * rng.uniform(-0.5, 0.5), -half[2] * rng.uniform(0.0, 0.6)
    yaw = np.arctan2(camera.position[0] - target[0], camera.position[2] - target[1])
    camera = Camera(camera.position, yaw, camera.pitch, camera.fov)
    wall_colour, floor_colour = str(rng.choice(WALLS)), str(rng.choice(FLOORS))
    wall = draw_material(rng, wall_colour, pick_pattern(rng, (0.45, 0.35, 0.2)), rng.uniform(0.3, 0.8))
    floor = draw_material(rng, floor_colour, pick_pattern(rng, (0.4, 0.25, 0.35)), rng.uniform(0.35, 0.8))
    ceiling = draw_material(rng, str(rng.choice(["white", "white", "white", "grey", wall_colour])), "plain", 1.0)
    setting = f"a room with {described(wall, wall_colour)} walls"
    if floor.pattern != "plain":
        setting += f", a {described(floor, floor_colour)} floor"
    return Scene(
        kind="room",
        setting=setting,
        enclosure=Box((0.0, half[1], 0.0), half),
        wall=wall,
        floor=floor,
        ceiling=ceiling,
        rim=np.inf,
        things=tuple(draw_things(rng, camera, half)),
        light=draw_lamp(rng, half),
        camera=camera,
    )


def pick_pattern(rng: np.random.Generator, odds) -> str:
    """plain, striped or checked with the given probabilities."""
    return str(rng.choice(["plain", "striped", "checked"], p=odds))


def draw_lamp(rng: np.random.Generator, half) -> Light:
    """A warm to cool lamp in the upper half of the room, with a dim ambient light."""
    warmth = rng.uniform(-1, 1)
    colour = np.array([1 + 0.12 * warmth, 1.0, 1 - 0.2 * warmth])
    place = half[0] * rng.uniform(-0.75, 0.75), half[1] * rng.uniform(1.3, 1.9), half[2] * rng.uniform(-0.75, 0.6)
    ambient = rng.uniform(0.08, 0.2)
    return Light(
        position=place,
        colour=tuple(colour),
        ambient=(ambient,) * 3,
        sky=(0.3 * ambient,) * 3,
        reach=rng.uniform(1.2, 2.6),
        shadows=bool(rng.random() < 0.85),
    )


def draw_things(rng: np.random.Generator, camera: Camera, half) -> list[Thing]:
    """One to five things in view of the camera."""
    things: list[Thing] = []
    taken: list = []
    tops: list = []
    for _ in range(rng.integers(1, 6)):
        noun, colour = str(rng.choice(["sphere", "box", "cylinder"])), str(rng.choice(COLOURS))
        size = rng.uniform(0.25, 0.6)
        material = draw_material(rng, colour, pick_pattern(rng, (0.7, 0.2, 0.1)), rng.uniform(0.1, 0.25))
        if tops and noun != "box" and rng.random() < 0.5:
            spot, base, widest = tops.pop()
            size = min(size, 0.9 * widest)
        else:
            spot, base = free_spot(rng, camera, (half[0], half[2]), taken, size, 1.0, 2 * half[2]), 0.0
            if spot is None:
                continue
        solid = draw_solid(rng, noun, spot, base, size)
        if noun == "box":
            tops.append((spot, 2 * solid.half[1], min(solid.half[0], solid.half[2])))
        things.append(Thing(noun, colour, ((solid, material),)))
    return things


def draw_solid(rng: np.random.Generator, noun: str, spot, base: float, size: float):
    """A sphere, box or cylinder that stands at height `base` over `spot` within a circle of radius `size`."""
    x, z = spot
    if noun == "sphere":
        return Sphere((x, base + size, z), size)
    if noun == "cylinder":
        half = size * rng.uniform(0.6, 1.8)
        return Cylinder((x, base + half, z), size * rng.uniform(0.6, 0.9), half)
    half = size * rng.uniform(0.5, 0.75), rng.uniform(0.15, 0.6), size * rng.uniform(0.5, 0.75)
    return Box((x, base + half[1], z), half, rng.uniform(0, np.pi))
