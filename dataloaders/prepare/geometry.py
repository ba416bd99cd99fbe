"""Rays of pixels, planar depth, and whether normals and depth of a set are what its documentation calls them.

A camera is a matrix (3,3) from (u, v, 1) to the ray through that point of the image, in camera axes x right, y up, z
toward the viewer; u runs from -1 (left) to 1, v from -1 (bottom) to 1, and pixel centres lie half a pixel inside.
A tilt-shift lens takes the image of an ordinary camera whose axis is perpendicular to the image plane and whose centre
is shifted. Depth and normals are given in the axes of that camera: those in which the image looks as it does.
"""

from collections.abc import Sequence

import numpy as np

from utils.errors import InputError
from utils.kinds.axes import normals_evidence, normals_findings, unit_vectors
from utils.kinds.depth import FARTHEST_MEDIAN, NEAREST_MEDIAN
from utils.labels.encoding import VOID

STEEP = 0.03  # relative step of depth between neighbours, beyond which they may be on two surfaces
CLEARLY = 0.6  # share of the angle between normals and depth that another reading of the depth must leave
TOWARD = 1e-3  # cosine to the viewing ray from which a normal faces away from the camera (Marigold's preprocessing)
OPENCV = np.array([1.0, -1.0, -1.0])  # from x right, y up, z toward the viewer


def pinhole(tangent: float, height: int, width: int) -> np.ndarray:
    """The camera matrix of square pixels and a centred axis. tangent: of half the horizontal angle of view."""
    return np.diag([tangent, tangent * height / width, -1.0])


def image_axes(camera: np.ndarray) -> np.ndarray:
    """(3,3), rows: the image's right, up and toward the viewer in camera axes. The identity without tilt.

    The third row is, up to its length, the fourth of the projection matrix M_proj that Hypersim publishes.
    """
    right, toward = unit_vectors(camera[:, 0]), unit_vectors(np.cross(camera[:, 0], camera[:, 1]))
    return np.stack([right, np.cross(toward, right), toward])


def image_rays(camera: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rays (H,W,3) through the pixel centres in the image's axes, of length 1 along its axis: z is -1."""
    u, v = np.meshgrid((np.arange(width) + 0.5) / width * 2 - 1, 1 - (np.arange(height) + 0.5) / height * 2)
    rays = np.stack([u, v, np.ones_like(u)], axis=2) @ (image_axes(camera) @ camera).T
    return rays / -rays[..., 2:]


def planar(distance: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Distance to the camera's centre (H,W) -> depth along the image's axis. rays: of `image_rays`."""
    return distance / np.linalg.norm(rays, axis=2)


def facing_normals(normals: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(unit normals (H,W,3), x right, y down, z forward; where there is one, (H,W); share that was turned).

    normals: in the image's axes, of any length from VOID. Those that face away from the camera are turned.
    """
    length = np.linalg.norm(normals, axis=2)
    known = (length >= VOID) & np.isfinite(length)
    unit = np.where(known[..., None], unit_vectors(normals), 0)
    away = np.einsum("hwc,hwc->hw", unit, unit_vectors(rays)) > TOWARD
    unit[away] *= -1
    return unit * OPENCV, known, float(away.mean())


def is_camera_of(rays: np.ndarray, position: np.ndarray, centre: np.ndarray) -> bool:
    """True if the points (H,W,3), world axes, that a camera at `centre` sees lie on these rays, up to its rotation.

    Distances between mean directions of 64 blocks are compared, which no rotation changes, with 2 mrad (two pixels of
    Hypersim) and what float16 rounds off positions far from the origin.
    """
    position, rays = thinned(position), thinned(rays)
    towards = position.astype(np.float64) - centre
    seen, model = unit_vectors(towards), unit_vectors(rays)
    known = np.isfinite(seen).all(axis=2)
    if known.mean() < 0.5:
        return False
    blocks = [
        np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        for rows in np.array_split(np.arange(known.shape[0]), 8)
        for columns in np.array_split(np.arange(known.shape[1]), 8)
    ]
    pairs = [(seen[at][known[at]].mean(axis=0), model[at][known[at]].mean(axis=0)) for at in blocks if known[at].any()]
    apart = [np.linalg.norm(means[:, None] - means, axis=2) for means in np.array(pairs).swapaxes(0, 1)]
    rounding = np.abs(position[known]).max(axis=1) / np.linalg.norm(towards[known], axis=1)
    coarse = 2.0**-12 * np.median(rounding) if position.dtype == np.float16 else 0.0
    return bool(np.percentile(np.abs(apart[0] - apart[1]), 90) < 2e-3 + coarse)


def thinned(values: np.ndarray) -> np.ndarray:
    """(H,W,...) -> every n-th row and column, about 96 rows: float16's steps of depth vanish between them."""
    step = max(1, len(values) // 96)
    return values[::step, ::step]


def normals_of_depth(depth: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(unit normals (H,W,3) of the surface that planar depth (H,W) shows, x right, y down, z forward; where the
    neighbours lie on one surface, (H,W)).
    """
    points = depth[..., None] * rays * OPENCV
    with np.errstate(all="ignore"):
        across, down = np.gradient(points, axis=1), np.gradient(points, axis=0)
        normals = unit_vectors(np.cross(down, across))
        steps = [np.abs(np.gradient(depth, axis=axis)) / depth for axis in (0, 1)]
    return normals, np.isfinite(normals).all(axis=2) & (np.maximum(*steps) < STEEP)


Geometry = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]


def check_geometry(where: object, frames: Sequence[Geometry]) -> None:
    """InputError where depth of a set does not count metres, or its normals do not fit its depth.

    frames: planar depth (H,W) and where it is known; normals (H,W,3) as stored, in the image's axes, or None; rays.
    The surfaces that the depth shows have normals of their own: axes that fit them far better are those that the files
    really have, and so is distance instead of planar depth, or the reverse.
    """
    medians = [float(np.median(depth[known])) for depth, known, _, _ in frames if known.any()]
    if medians and not NEAREST_MEDIAN < np.median(medians) < FARTHEST_MEDIAN:
        raise InputError(
            f"{where}: the median depth is {np.median(medians):.3g} m, so the files hold another unit than the "
            "published ones; take those"
        )
    evidence, angles = [], []
    for *maps, stored, rays in frames:
        if stored is None:
            continue
        depth, known, stored, rays = map(thinned, (*maps, stored, rays))
        normals, directed, _ = facing_normals(stored, rays)
        factor = np.linalg.norm(rays, axis=2)
        readings = [normals_of_depth(depth * scale, rays) for scale in (1, factor, 1 / factor)]
        use = known & np.logical_and.reduce([smooth for _, smooth in readings]) & directed
        if use.sum() < 0.1 * use.size:
            continue
        evidence.append(normals_evidence(stored, np.nan_to_num(readings[0][0]), use))
        angles.append([np.median(np.arccos(np.clip((n * normals).sum(axis=2)[use], -1, 1))) for n, _ in readings])
    if findings := normals_findings(evidence, "opengl"):
        advice = "the depth shows their directions; take the published files"
        raise InputError(f"{where}: {findings[0].text('the normals', advice)}")
    if angles:
        present, *others = np.median(angles, axis=0)
        if present > np.radians(1) and min(others) < CLEARLY * present:
            kinds = ("planar depth instead of distance", "distance instead of planar depth")
            raise InputError(
                f"{where}: the files hold {kinds[int(np.argmin(others))]} (which fits the normals to "
                f"{np.degrees(min(others)):.1f} degrees, not {np.degrees(present):.1f}); take the published ones"
            )
