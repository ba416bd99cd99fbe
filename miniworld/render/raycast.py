"""From a scene to its image and its intrinsics, one ray through each pixel centre.

    rgb = albedo * shading        in linear light, exactly, before the 8-bit sRGB coding

Shading is the light that arrives times the cosine, with shadows and ambient light, times one exposure per image,
clipped at 1 as a sensor clips: so albedo, shading and RGB all lie in [0, 1] and nothing else is ever clipped. There is
no supersampling: every map describes the same point of the surface. Patterns are averaged over the pixel instead, in
the albedo.
"""

from dataclasses import dataclass

import numpy as np

from miniworld.render.shapes import dot
from miniworld.render.world import Scene
from utils.image_io.colour_space import to_srgb

SKY, ENCLOSURE = -2, -1
SURFACE_OFFSET = 2e-3


@dataclass(frozen=True)
class Rendering:
    """All maps of one image of H x W pixels.

    rgb      (H, W, 3) uint8, sRGB-coded
    depth    (H, W) float32, metres along the optical axis (z-depth, not the length of the ray); 0 in the sky
    normal   (H, W, 3) float32, unit, DIODE's raw frame: x right, y up, z toward the viewer; (0, 0, 1) in the sky
    albedo   (H, W, 3) float32 in [0, 1], linear light; in the sky its colour
    shading  (H, W, 3) float32 in [0, 1], linear light; 1 in the sky
    valid    (H, W) bool, true unless sky or next to a depth discontinuity
    segment  (H, W) int16, index into scene.things, or ENCLOSURE, or SKY
    """

    rgb: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    albedo: np.ndarray
    shading: np.ndarray
    valid: np.ndarray
    segment: np.ndarray
    caption: str
    scene: Scene


def trace(scene: Scene, height: int, width: int) -> Rendering:
    """Render the scene at (height, width)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rays = scene.camera.rays(height, width)
        depth, part = nearest_hit(scene, rays)
        points = np.asarray(scene.camera.position, np.float32)[:, None] + depth * rays
        part[(part == ENCLOSURE) & (points[1] > scene.rim)] = SKY
        normal, albedo, segment = surfaces(scene, rays, depth, points, part, scene.camera.pixel(height, width))
        shading = illuminate(scene, points, normal, part)
    sky = part == SKY
    depth[sky] = 0
    normal = scene.camera.from_world(normal)
    normal[:, sky] = [[0], [0], [1]]

    def image(maps):
        return np.ascontiguousarray(maps.reshape(-1, height, width).transpose(1, 2, 0))

    depth, segment, part = (values.reshape(height, width) for values in (depth, segment, part))
    return Rendering(
        rgb=image(np.round(255 * to_srgb(albedo * shading)).astype(np.uint8)),
        depth=depth,
        normal=image(normal),
        albedo=image(albedo),
        shading=image(shading),
        valid=(part != SKY) & ~discontinuities(depth, part),
        segment=segment,
        caption=scene.caption(visible_things(segment)),
        scene=scene,
    )


def solids(scene: Scene):
    """All solids in order, each with its material and the index of its thing."""
    return [(solid, material, i) for i, thing in enumerate(scene.things) for solid, material in thing.parts]


def nearest_hit(scene: Scene, rays):
    """Depth (N,) float32 and the index of the solid hit there (N,) int16, ENCLOSURE where it is none of them."""
    origin = np.asarray(scene.camera.position, np.float32)[:, None]
    depth = scene.enclosure.interval(origin, rays)[1].astype(np.float32)
    part = np.full(depth.shape, ENCLOSURE, np.int16)
    for index, (solid, _, _) in enumerate(solids(scene)):
        near, far = solid.interval(origin, rays)
        hit = (near <= far) & (near > 0) & (near < depth)
        depth[hit] = near[hit]
        part[hit] = index
    return depth, part


def surfaces(scene: Scene, rays, depth, points, part, pixel: float):
    """World normals (3, N) that face the viewer, albedo (3, N), and the index of the thing at each pixel (N,)."""
    normal, albedo = np.zeros_like(points), np.zeros_like(points)
    segment = part.copy()
    listed = [(scene.enclosure, None, ENCLOSURE), *solids(scene)]
    for index, (solid, material, thing) in enumerate(listed, start=ENCLOSURE):
        here = np.flatnonzero(part == index)
        if not here.size:
            continue
        outward, uv, axis = solid.surface(points[:, here])
        slant = np.maximum(np.abs(dot(outward, rays[:, here])), 0.05)
        footprint = depth[here] * np.float32(pixel) / np.sqrt(slant)
        if index == ENCLOSURE:
            outward = -outward
            albedo[:, here] = enclosure_albedo(scene, uv, footprint, axis, outward[1] > 0)
        else:
            albedo[:, here] = material.albedo(uv, footprint)
        normal[:, here], segment[here] = outward, thing
    sky = part == SKY
    if sky.any():
        up = rays[1, sky] / np.sqrt(dot(rays[:, sky], rays[:, sky]))
        blend = np.clip(up / 0.6, 0, 1) ** 0.7
        horizon, zenith = (np.asarray(colour, np.float32)[:, None] for colour in (scene.horizon, scene.zenith))
        albedo[:, sky] = horizon + (zenith - horizon) * blend
    return normal, albedo, segment


def enclosure_albedo(scene: Scene, uv, footprint, axis, upward):
    """Albedo (3, N) of walls, floor and ceiling by the axis that their normal is about."""
    albedo = np.empty((3, uv.shape[1]), np.float32)
    for material, here in (
        (scene.wall, axis != 1),
        (scene.floor, (axis == 1) & upward),
        (scene.ceiling, (axis == 1) & ~upward),
    ):
        if material is not None and here.any():
            albedo[:, here] = material.albedo(uv[:, here], footprint[here])
    return albedo


def illuminate(scene: Scene, points, normal, part):
    """Shading (3, N) in [0, 1]: ambient and sky light, and the lamp's where nothing hides it; 1 in the sky."""
    light = scene.light
    colour, ambient, sky = (np.asarray(c, np.float32)[:, None] for c in (light.colour, light.ambient, light.sky))
    shading = ambient + sky * (0.5 + 0.5 * normal[1])
    # Off the surface, so that it does not shade itself.
    start = points + np.float32(SURFACE_OFFSET) * normal
    toward, strength = light.toward(start)
    cosine = dot(toward, normal) / np.sqrt(dot(toward, toward))
    lit = np.flatnonzero((cosine > 0) & (part != SKY))
    if light.shadows:
        lit = lit[~hidden(scene, start[:, lit], toward[:, lit])]
    shading[:, lit] += colour * (cosine[lit] * strength[lit])
    seen = part != SKY
    if seen.any():
        brightest = shading[:, seen].max(axis=0)
        level = int(0.93 * (brightest.size - 1))
        shading /= np.partition(brightest, level)[level]
    shading[:, ~seen] = 1
    return np.minimum(shading, 1)


def hidden(scene: Scene, start, toward):
    """True where something is between start (3, N) and the light at start + toward. The enclosure casts no shadow."""
    dark = np.zeros(start.shape[1], bool)
    for solid, _, _ in solids(scene):
        near, far = solid.interval(start, toward)
        dark |= (near <= far) & (far > 0) & (near < 1)
    return dark


def discontinuities(depth, part):
    """Pixels (H, W) bool next to a jump of more than 5 cm + 3 % between two solids; the band widens with the image."""
    distance = np.where(part == SKY, np.float32(1e6), depth)
    band = np.zeros(depth.shape, bool)
    for axis in (0, 1):
        first, second = (np.take(distance, range(s, s + depth.shape[axis] - 1), axis) for s in (0, 1))
        jump = np.abs(first - second) > 0.05 + 0.03 * np.minimum(first, second)
        jump &= np.diff(part, axis=axis) != 0
        pad = [(0, 0), (0, 0)]
        pad[axis] = (0, 1)
        band |= np.pad(jump, pad)
        pad[axis] = (1, 0)
        band |= np.pad(jump, pad)
    for _ in range(min(depth.shape) // 256):
        grown = np.pad(band, 1)
        band = grown[1:-1, 1:-1] | grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
    return band


def visible_things(segment) -> set[int]:
    """Indices of the things that cover at least 0.6 % of the image: what a caption may name."""
    index, count = np.unique(segment[segment >= 0], return_counts=True)
    return {int(i) for i, n in zip(index, count) if n >= 0.006 * segment.size}
