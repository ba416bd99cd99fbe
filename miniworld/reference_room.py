"""The scene that checks a teacher before it labels anything: floor, walls and a sphere."""

import numpy as np

from miniworld.render.materials import Material
from miniworld.render.raycast import Rendering, trace
from miniworld.render.shapes import Box, Sphere
from miniworld.render.world import Camera, Light, Scene, Thing

SIZE = (480, 640)  # height, width


def room_with_sphere() -> Rendering:
    """A plain room with a tiled floor, seen from its near end, and a sphere in the middle."""
    grey, brick, tile = (0.7, 0.7, 0.68), (0.55, 0.25, 0.2), (0.25, 0.22, 0.2)
    sphere = Thing("sphere", "red", ((Sphere((0.0, 0.7, -0.6), 0.7), Material((0.6, 0.1, 0.1), brick)),))
    scene = Scene(
        kind="room",
        setting="a room",
        enclosure=Box((0.0, 1.5, 0.0), (2.5, 1.5, 3.0)),
        wall=Material((0.6, 0.62, 0.7), grey, "striped", 0.5),
        floor=Material(tile, grey, "checked", 0.5),
        ceiling=Material(grey, grey),
        rim=np.inf,
        things=(sphere,),
        light=Light((1.2, 2.6, 1.0), (1.0, 1.0, 0.9), (0.15,) * 3, (0.05,) * 3, reach=2.5),
        camera=Camera((0.3, 1.5, 2.7), 0.08, -0.12, np.radians(65)),
    )
    return trace(scene, *SIZE)
