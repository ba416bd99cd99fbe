"""The parts of a scene: enclosure, things, light and camera, and their description in English.

World axes: x right, y up, z toward the viewer before the camera turns; the floor is y = 0; metres and radians.
"""

from dataclasses import dataclass

import numpy as np

from miniworld.render.materials import Material
from miniworld.render.shapes import Box, Cylinder, Sphere, column, dot, rotate_y

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Camera:
    """A pinhole. `yaw` turns left, `pitch` tilts up, `fov` is the angle of view along the image's shorter side."""

    position: tuple[float, float, float]
    yaw: float
    pitch: float
    fov: float

    def pixel(self, height: int, width: int) -> float:
        """Side of a pixel on the image plane at distance 1; its inverse is the focal length in pixels."""
        return 2 * np.tan(self.fov / 2) / min(height, width)

    def rays(self, height: int, width: int):
        """World directions (3, H*W) through pixel centres, of length 1 along the optical axis: t is z-depth."""
        size = self.pixel(height, width)
        across = (np.arange(width) + 0.5 - width / 2) * size
        down = (np.arange(height) + 0.5 - height / 2) * size
        x, y = (grid.ravel() for grid in np.meshgrid(across, -down))
        return self.to_world(np.stack([x, y, -np.ones_like(x)]).astype(np.float32))

    def to_world(self, vectors):
        """Camera frame (x right, y up, z toward the viewer) to world frame, (3, N)."""
        return rotate_y(rotate_x(vectors, self.pitch), self.yaw)

    def from_world(self, vectors):
        """World frame to camera frame, (3, N)."""
        return rotate_x(rotate_y(vectors, -self.yaw), -self.pitch)


def rotate_x(vectors, angle: float):
    """Rotate (3, N) by `angle` radians about the x axis; positive turns -z toward y (up)."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return np.stack([vectors[0], cos * vectors[1] - sin * vectors[2], sin * vectors[1] + cos * vectors[2]])


@dataclass(frozen=True)
class Light:
    """A lamp at `position` (metres), or a `distant` sun in that direction; `ambient` light, `sky` light from above.

    All three are linear RGB irradiances. A lamp falls off as 1 / (1 + (distance / reach)^2): inverse square, but
    finite at the lamp.
    """

    position: tuple[float, float, float]
    colour: tuple[float, float, float]
    ambient: tuple[float, float, float]
    sky: tuple[float, float, float]
    distant: bool = False
    reach: float = 2.0
    shadows: bool = True

    def toward(self, points):
        """Vectors from points (3, N) to the light, full length (t = 1 is the lamp), and its strength there (N,)."""
        place = column(self.position)
        if self.distant:
            # 1 km away: farther than any yard is wide, so the shadow test needs no second case.
            unit = place / np.sqrt(dot(place, place))
            return np.broadcast_to(unit * np.float32(1000), points.shape), np.ones(points.shape[1], np.float32)
        away = place - points
        return away, 1 / (1 + dot(away, away) / np.float32(self.reach**2))


@dataclass(frozen=True)
class Thing:
    """Something with a name: solids in one piece, each with its material. `colour` is the palette's word for it."""

    noun: str
    colour: str
    parts: tuple[tuple[Sphere | Box | Cylinder, Material], ...]


@dataclass(frozen=True)
class Scene:
    """An enclosure seen from within, with things in it.

    The enclosure's walls are `rim` metres high. Above them is the sky, which runs from `horizon` to `zenith` (linear
    RGB); a room's rim is its ceiling, so it has none.
    """

    kind: str
    setting: str
    enclosure: Box
    wall: Material
    floor: Material
    ceiling: Material | None
    rim: float
    things: tuple[Thing, ...]
    light: Light
    camera: Camera
    horizon: tuple[float, float, float] = (0.0, 0.0, 0.0)
    zenith: tuple[float, float, float] = (0.0, 0.0, 0.0)
    backdrop: str = ""

    def caption(self, visible) -> str:
        """Setting, `visible` things by index, backdrop: "a room with striped red walls, two spheres and a box"."""
        found: dict[str, list[Thing]] = {}
        for index in sorted(visible):
            found.setdefault(self.things[index].noun, []).append(self.things[index])
        phrases = [phrase(noun, things) for noun, things in sorted(found.items())]
        *head, last = [self.setting, *phrases]
        return (f"{', '.join(head)} and {last}" if head else last) + self.backdrop


def phrase(noun: str, things: list[Thing]) -> str:
    """One thing with its colour, several with their number."""
    if len(things) > 1:
        return f"{NUMBERS[len(things)]} {'boxes' if noun == 'box' else noun + 's'}"
    words = f"{things[0].colour} {noun}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def described(material: Material, colour: str) -> str:
    """ "blue" or "striped blue"."""
    return colour if material.pattern == "plain" else f"{material.pattern} {colour}"


def free_spot(rng: np.random.Generator, camera: Camera, size, taken: list, radius: float, near: float, far: float):
    """A floor position (x, z) in view, or None if 20 tries find none.

    Its circle of `radius` is `near` to `far` metres from the camera, clear of walls (half extents `size`) and of the
    circles `taken`, to which it is added.
    """
    for _ in range(20):
        distance = rng.uniform(radius + near, far)
        bearing = camera.yaw + rng.uniform(-0.42, 0.42) * camera.fov
        x = camera.position[0] - distance * np.sin(bearing)
        z = camera.position[2] - distance * np.cos(bearing)
        inside = abs(x) < size[0] - radius and abs(z) < size[1] - radius
        if inside and all(np.hypot(x - cx, z - cz) > radius + other + 0.05 for cx, cz, other in taken):
            taken.append((x, z, radius))
            return x, z
    return None
