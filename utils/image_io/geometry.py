"""A relative depth map as a surface or as points in space, in metres.

    z = near + (max p - p) / (max p - min p) (far - near)         p: the map, near = large, linear in depth
    x = (column + 0.5 - W / 2) z / f,   y = (row + 0.5 - H / 2) z / f,   f = W / 2 / tan(fov / 2)

z is measured along the optical axis, not along the ray. Written are opengl's axes, which are glTF's: x right, y up, z
toward the viewer, with the camera at the origin: (x, -y, -z).
"""

import json
from collections.abc import Mapping

import numpy as np
from PIL import Image

GRAZING = 5.0  # degrees: a triangle that the camera sees under a smaller angle lies across a jump in depth


def metres(values: np.ndarray, near: float, far: float) -> np.ndarray:
    """A relative depth (H,W), near = large -> metres along the optical axis, float64, from `near` to `far`.

    A constant map lies at `near`.
    """
    values = values.astype(np.float64)
    return near + (values.max() - values) / max(np.ptp(values), 1e-12) * (far - near)


def points(depth: np.ndarray, fov: float) -> np.ndarray:
    """Metres along the optical axis (H,W) -> (H,W,3) in opengl axes. fov: degrees across the width of the map."""
    height, width = depth.shape
    focal = width / 2 / np.tan(np.radians(fov) / 2)
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = (np.arange(height) + 0.5 - height / 2) / focal
    return np.stack([x[None] * depth, -y[:, None] * depth, -depth], axis=-1)


def triangles(places: np.ndarray) -> np.ndarray:
    """Points (H,W,3) -> (N,3) indices into places.reshape(-1, 3): two triangles between each four neighbours, whose
    front faces the camera; none where depth jumps (`GRAZING`).
    """
    height, width = places.shape[:2]
    index = np.arange(height * width).reshape(height, width)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    faces = np.concatenate([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], axis=2).reshape(-1, 3)
    first, second, third = np.moveaxis(places.reshape(-1, 3)[faces], 1, 0)
    normal, ray = np.cross(second - first, third - first), first + second + third
    lengths = np.linalg.norm(normal, axis=1) * np.linalg.norm(ray, axis=1)
    return faces[np.abs((normal * ray).sum(1)) > np.sin(np.radians(GRAZING)) * lengths]


def glb(places: np.ndarray, image: Image.Image, metadata: Mapping[str, object]) -> bytes:
    """Points (H,W,3) and the RGB image of that size -> a binary glTF of one surface, the image its texture.

    metadata: the mesh's `extras`.
    """
    import trimesh  # optional: requirements-extra.txt

    height, width = places.shape[:2]
    column, row = np.meshgrid((np.arange(width) + 0.5) / width, 1 - (np.arange(height) + 0.5) / height)
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True
    )
    visual = trimesh.visual.TextureVisuals(uv=np.stack([column, row], -1).reshape(-1, 2), material=material)
    mesh = trimesh.Trimesh(places.reshape(-1, 3), triangles(places), visual=visual, process=False)
    mesh.metadata.update(metadata)
    return trimesh.Scene(mesh).export(file_type="glb")


def ply(places: np.ndarray, image: Image.Image, metadata: Mapping[str, object]) -> bytes:
    """Points (H,W,3) and the RGB image of that size -> a binary PLY of coloured points. metadata: its comments."""
    kinds = [(axis, "<f4") for axis in "xyz"] + [(colour, "u1") for colour in ("red", "green", "blue")]
    found = np.empty(places.shape[:2], kinds)
    for name, plane in zip(dict(kinds), [*np.moveaxis(places, -1, 0), *np.moveaxis(np.asarray(image), -1, 0)]):
        found[name] = plane
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment {key}: {json.dumps(value)}" for key, value in metadata.items()]
    header += [f"element vertex {found.size}"]
    header += [f"property {'float' if kind == '<f4' else 'uchar'} {name}" for name, kind in kinds]
    return "\n".join([*header, "end_header\n"]).encode("ascii") + found.tobytes()
