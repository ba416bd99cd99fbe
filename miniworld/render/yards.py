"""Random yards: ground within a low fence, sky above it, a sun, and trees, blocks and balls."""

import numpy as np

from miniworld.render.materials import PALETTE, Material, draw_colour, draw_material
from miniworld.render.rooms import pick_pattern
from miniworld.render.shapes import Box, Cylinder, Sphere
from miniworld.render.world import Camera, Light, Scene, Thing, described, free_spot
from utils.image_io.colour_space import to_linear

COLOURS = [name for name in PALETTE if name != "green"]
GROUNDS = ("green", "green", "green", "brown", "yellow", "grey", "orange")
FENCES = ("brown", "white", "grey", "green", "red", "blue")
# sRGB at the horizon and overhead, sun strength, light of the sky
SKIES = {
    "blue": ((0.80, 0.89, 0.97), (0.28, 0.52, 0.88), 1.0, (0.20, 0.24, 0.32)),
    "grey": ((0.84, 0.85, 0.86), (0.60, 0.63, 0.67), 0.35, (0.36, 0.37, 0.40)),
    "orange": ((0.98, 0.74, 0.45), (0.46, 0.42, 0.66), 0.8, (0.24, 0.19, 0.22)),
}


def draw_yard(rng: np.random.Generator) -> Scene:
    """A yard 16 to 32 m wide and deep, seen from its near end."""
    size = rng.uniform(8, 16), rng.uniform(8, 16)
    camera = Camera(
        position=(size[0] * rng.uniform(-0.4, 0.4), rng.uniform(1.3, 2.8), size[1] * rng.uniform(0.4, 0.8)),
        yaw=rng.uniform(-0.4, 0.4),
        pitch=np.radians(rng.uniform(-14, 4)),
        fov=np.radians(rng.uniform(48, 75)),
    )
    ground_colour, fence_colour = str(rng.choice(GROUNDS)), str(rng.choice(FENCES))
    ground = draw_material(rng, ground_colour, pick_pattern(rng, (0.65, 0.15, 0.2)), rng.uniform(0.8, 2.0))
    fence = draw_material(rng, fence_colour, pick_pattern(rng, (0.4, 0.4, 0.2)), rng.uniform(0.3, 0.8))
    sky = str(rng.choice(list(SKIES), p=[0.55, 0.25, 0.2]))
    horizon, zenith, sun, glow = SKIES[sky]
    return Scene(
        kind="yard",
        setting=f"a yard with {described(ground, ground_colour)} ground",
        backdrop=f" under {'an' if sky == 'orange' else 'a'} {sky} sky",
        # 200 m high, so that every ray that looks up still leaves through a wall, above the rim.
        enclosure=Box((0.0, 200.0, 0.0), (size[0], 200.0, size[1])),
        wall=fence,
        floor=ground,
        ceiling=None,
        rim=rng.uniform(0.4, 2.4),
        things=tuple(draw_things(rng, camera, size)),
        light=draw_sun(rng, camera, sun, glow, warm=sky == "orange"),
        camera=camera,
        horizon=tuple(to_linear(np.clip(np.array(horizon) + rng.uniform(-0.03, 0.03, 3), 0, 1))),
        zenith=tuple(to_linear(np.clip(np.array(zenith) + rng.uniform(-0.05, 0.05, 3), 0, 1))),
    )


def draw_sun(rng: np.random.Generator, camera: Camera, strength: float, glow, warm: bool) -> Light:
    """A sun to the left, right or back of the camera: what one looks at is lit, or lit from the side."""
    bearing = camera.yaw + np.pi + rng.uniform(-2.0, 2.0)
    elevation = np.radians(rng.uniform(12, 30) if warm else rng.uniform(25, 65))
    colour = np.array([1.0, 0.78, 0.52] if warm else [1.0, 0.97, 0.90]) * strength
    return Light(
        position=(-np.sin(bearing) * np.cos(elevation), np.sin(elevation), -np.cos(bearing) * np.cos(elevation)),
        colour=tuple(colour),
        ambient=(0.12, 0.12, 0.12),
        sky=glow,
        distant=True,
        shadows=strength > 0.5,
    )


def draw_things(rng: np.random.Generator, camera: Camera, size) -> list[Thing]:
    """Up to seven trees, blocks and balls in view of the camera."""
    things: list[Thing] = []
    taken: list = []
    for _ in range(rng.integers(2, 8)):
        noun = str(rng.choice(["tree", "block", "ball"], p=[0.5, 0.32, 0.18]))
        reach = {"tree": rng.uniform(0.8, 1.5), "block": rng.uniform(0.8, 1.8), "ball": rng.uniform(0.35, 0.9)}[noun]
        spot = free_spot(rng, camera, size, taken, reach, 2.5, min(14.0, size[1] + camera.position[2]))
        if spot is None:
            continue
        if noun == "tree":
            things.append(draw_tree(rng, spot, reach))
            continue
        colour = str(rng.choice(COLOURS))
        material = draw_material(rng, colour, pick_pattern(rng, (0.6, 0.25, 0.15)), rng.uniform(0.25, 0.6))
        if noun == "ball":
            solid = Sphere((spot[0], reach, spot[1]), reach)
        else:
            half = reach * rng.uniform(0.5, 0.7), rng.uniform(0.4, 1.5), reach * rng.uniform(0.5, 0.7)
            solid = Box((spot[0], half[1], spot[1]), half, rng.uniform(0, np.pi))
        things.append(Thing(noun, colour, ((solid, material),)))
    return things


def draw_tree(rng: np.random.Generator, spot, reach: float) -> Thing:
    """A trunk and a crown of one to four spheres."""
    colour = str(rng.choice(["green", "green", "green", "orange", "pink"]))
    x, z = spot
    top = rng.uniform(1.0, 2.2)
    bark, leaves = draw_colour(rng, "brown"), draw_colour(rng, colour)
    trunk, leaf = Cylinder((x, top / 2, z), rng.uniform(0.1, 0.2), top / 2), Material(leaves, leaves)
    parts = [(trunk, Material(bark, bark)), (Sphere((x, top + 0.6 * reach, z), 0.8 * reach), leaf)]
    for _ in range(rng.integers(0, 4)):
        angle, out = rng.uniform(0, 2 * np.pi), reach * rng.uniform(0.3, 0.5)
        centre = x + out * np.cos(angle), top + reach * rng.uniform(0.3, 1.3), z + out * np.sin(angle)
        parts.append((Sphere(centre, reach * rng.uniform(0.4, 0.6)), leaf))
    return Thing("tree", colour, tuple(parts))
