"""Convex solids, and where rays meet them.

Axes: x right, y up, z toward the viewer of an unrotated camera; metres. Points and directions are float32 arrays (3,
N), or (3, 1) where one value serves all rays. A ray is origin + t * direction; directions need not be unit vectors,
and t is in units of them.

Every solid is convex, so a ray is inside it for one interval of t: `interval` returns its (near, far), with near > far
for a miss. `surface` takes points *on* the solid and returns the outward unit normals (3, N), the texture coordinates
(2, N) in metres and the axis (N,) that each normal is about: 0 x, 1 y, 2 z, all 0 on a sphere, 0 or 1 on a cylinder.
"""

from dataclasses import dataclass

import numpy as np


def dot(a, b):
    """Inner product over the first of the axes: (3, N) x (3, N) -> (N,)."""
    # Written out: BLAS may sum in another order for another number of threads.
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def column(values) -> np.ndarray:
    """A float32 column (3, 1) that broadcasts against (3, N)."""
    return np.asarray(values, np.float32).reshape(3, 1)


def rotate_y(vectors, angle: float):
    """Rotate (3, N) by `angle` radians about the vertical; positive turns -z toward -x (to the left)."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return np.stack([cos * vectors[0] + sin * vectors[2], vectors[1], cos * vectors[2] - sin * vectors[0]])


def slab(origin, direction, half):
    """Interval of t (N,), (N,) in which one coordinate stays within [-half, half]."""
    inverse = 1 / direction
    middle, reach = -origin * inverse, np.abs(half * inverse)
    return middle - reach, middle + reach


@dataclass(frozen=True)
class Sphere:
    """Centre (3,) and radius."""

    centre: tuple[float, float, float]
    radius: float

    def interval(self, origin, direction):
        offset = origin - column(self.centre)
        squared = dot(direction, direction)
        middle = -dot(offset, direction) / squared
        nearest = offset + middle * direction
        # By the closest approach: b^2 - ac would lose small spheres far away to float32 cancellation.
        gap = self.radius**2 - dot(nearest, nearest)
        reach = np.sqrt(np.maximum(gap, 0) / squared)
        return np.where(gap > 0, middle - reach, np.inf), middle + reach

    def surface(self, points):
        normal = (points - column(self.centre)) / np.float32(self.radius)
        normal /= np.sqrt(dot(normal, normal))
        longitude = np.arctan2(normal[0], normal[2])
        uv = np.stack([longitude, np.arcsin(np.clip(normal[1], -1, 1))]) * np.float32(self.radius)
        return normal, uv, np.zeros(points.shape[1], np.int8)


@dataclass(frozen=True)
class Box:
    """Centre (3,), half extents (3,), and a turn of `yaw` radians about the vertical."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float = 0.0

    def interval(self, origin, direction):
        origin = rotate_y(origin - column(self.centre), -self.yaw)
        direction = rotate_y(direction, -self.yaw)
        near, far = slab(origin[0], direction[0], self.half[0])
        for axis in (1, 2):
            enter, leave = slab(origin[axis], direction[axis], self.half[axis])
            near, far = np.maximum(near, enter), np.minimum(far, leave)
        return near, far

    def surface(self, points):
        local = rotate_y(points - column(self.centre), -self.yaw)
        # The face is the one whose plane the point lies closest to, in metres: thin boxes must not win by their ratio.
        axis = np.argmin(column(self.half) - np.abs(local), axis=0).astype(np.int8)
        normal = np.where(np.arange(3)[:, None] == axis, np.sign(local), 0).astype(np.float32)
        across = np.where(axis == 0, local[2], local[0])
        along = np.where(axis == 1, local[2], local[1] + np.float32(self.half[1]))
        return rotate_y(normal, self.yaw), np.stack([across, along]), axis


@dataclass(frozen=True)
class Cylinder:
    """An upright cylinder: centre (3,), radius, half height."""

    centre: tuple[float, float, float]
    radius: float
    half: float

    def interval(self, origin, direction):
        offset = origin - column(self.centre)
        flat = direction[0] ** 2 + direction[2] ** 2
        middle = -(offset[0] * direction[0] + offset[2] * direction[2]) / flat
        nearest = (offset[0] + middle * direction[0]) ** 2 + (offset[2] + middle * direction[2]) ** 2
        gap = self.radius**2 - nearest
        reach = np.sqrt(np.maximum(gap, 0) / flat)
        enter, leave = slab(offset[1], direction[1], self.half)
        near = np.where(gap > 0, np.maximum(middle - reach, enter), np.inf)
        return near, np.minimum(middle + reach, leave)

    def surface(self, points):
        local = points - column(self.centre)
        side = np.hypot(local[0], local[2])
        cap = self.half - np.abs(local[1]) < np.abs(self.radius - side)
        zero = np.zeros_like(side)
        round_normal = np.stack([local[0] / side, zero, local[2] / side])
        normal = np.where(cap, np.stack([zero, np.sign(local[1]), zero]), round_normal)
        across = np.where(cap, local[0], np.arctan2(local[0], local[2]) * np.float32(self.radius))
        along = np.where(cap, local[2], local[1] + np.float32(self.half))
        return normal, np.stack([across, along]), cap.astype(np.int8)
