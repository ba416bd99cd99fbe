"""Small files in the layouts of published training sets, written from exact scenes.

A `Shot` holds the exact maps of one image; `of_scene` renders one with miniworld, and a test may change it.
"""

import csv
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from miniworld.render.raycast import SKY, trace
from miniworld.render.rooms import draw_room
from miniworld.render.world import Scene
from utils.image_io.files import save_png, write_exr

ASSET_UNITS = 39.37  # of Hypersim's positions, per metre


@dataclass
class Shot:
    """Maps of an image. camera: (u, v, 1) to rays, x right, y up, z toward the viewer; rays (H,W,3): camera axes.

    normal: camera axes, unit. depth: along -z of the camera, metres. albedo, shading: linear. entity: -1 in the sky.
    """

    camera: np.ndarray
    normal: np.ndarray
    depth: np.ndarray
    albedo: np.ndarray
    shading: np.ndarray
    entity: np.ndarray
    residual: np.ndarray

    @property
    def rays(self) -> np.ndarray:
        return rays_of(self.camera, *self.depth.shape)

    @property
    def distance(self) -> np.ndarray:
        return self.depth * np.linalg.norm(self.rays, axis=2) / -self.rays[..., 2]

    @property
    def color(self) -> np.ndarray:
        return self.albedo * self.shading + self.residual


def rays_of(camera: np.ndarray, height: int, width: int) -> np.ndarray:
    """Hypersim's rays through pixel centres, as its notebook 01_casting_rays has them."""
    u, v = np.meshgrid((np.arange(width) + 0.5) / width * 2 - 1, 1 - (np.arange(height) + 0.5) / height * 2)
    return np.stack([u, v, np.ones_like(u)], axis=2) @ camera.T


def of_scene(scene: Scene, height: int = 48, width: int = 64) -> Shot:
    """The exact maps of a miniworld scene."""
    found = trace(scene, height, width)
    size = scene.camera.pixel(height, width)
    segment = np.where(found.segment == SKY, -1, found.segment + 1)
    camera = np.diag([size * width / 2, size * height / 2, -1])
    zero = np.zeros_like(found.albedo)
    return Shot(camera, found.normal, found.depth, found.albedo, found.shading, segment, zero)


def room(seed: int, tangent: float = 0.0) -> Scene:
    """A room; tangent: of half its horizontal angle of view at 4:3, if not the scene's own."""
    scene = draw_room(np.random.default_rng([17, seed]))
    if not tangent:
        return scene
    return replace(scene, camera=replace(scene.camera, fov=2 * np.arctan(0.75 * tangent)))


def hdf5(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=values, compression="gzip")


def hypersim_shot(root: Path, scene: str, frame: int, shot: Shot, dtype: type = np.float32) -> Path:
    """The files of one image below root/scene, of cam_00; the scene's folder."""
    final = root / scene / "images" / "scene_cam_00_final_hdf5" / f"frame.{frame:04d}"
    geometry = root / scene / "images" / "scene_cam_00_geometry_hdf5" / f"frame.{frame:04d}"
    colours = {"color": shot.color, "diffuse_reflectance": shot.albedo, "diffuse_illumination": shot.shading}
    for name, values in (colours | {"residual": shot.residual}).items():
        hdf5(final.with_name(f"{final.name}.{name}.hdf5"), values.astype(dtype))
    centre, turn = np.array([30.0, -12.0, 5.0]), np.array([[0.6, 0, 0.8], [0, 1, 0], [-0.8, 0, 0.6]])
    seen = shot.rays / np.linalg.norm(shot.rays, axis=2, keepdims=True) * shot.distance[..., None]
    position = centre + ASSET_UNITS * seen @ turn.T
    maps = {"depth_meters": shot.distance.astype(np.float32), "normal_cam": shot.normal.astype(dtype)}
    maps |= {"position": position.astype(np.float32), "render_entity_id": shot.entity.astype(np.int32)}
    for name, values in maps.items():
        hdf5(geometry.with_name(f"{geometry.name}.{name}.hdf5"), values)
    hdf5(root / scene / "_detail" / "cam_00" / "camera_keyframe_positions.hdf5", np.tile(centre, (4, 1)))
    return root / scene


def zipped(folder: Path) -> Path:
    """A scene's folder as its published zip file; the folder goes."""
    archive = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder.parent))
                path.unlink()
    for path in sorted([folder, *folder.rglob("*")], reverse=True):
        path.rmdir()
    return archive


def split_csv(path: Path, rows: Iterable[tuple[str, int, str]]) -> Path:
    """metadata_images_split_scene_v1.csv of (scene, frame, split); an empty split: not released."""
    names = "scene_name camera_name frame_id included_in_public_release exclude_reason split_partition_name".split()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([scene, "cam_00", frame, bool(split), "", split] for scene, frame, split in rows)
    return path


def camera_csv(path: Path, cameras: dict[str, np.ndarray]) -> Path:
    """metadata_camera_parameters.csv of scene -> camera, without the columns that are not read."""
    names = [f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scene_name", *names])
        writer.writerows([scene, *camera.ravel()] for scene, camera in cameras.items())
    return path


def hypersim_image(shot: Shot) -> np.ndarray:
    """Hypersim's tone mapping, uint8."""
    scale = 0.8**2.2 / np.percentile(shot.color @ np.array([0.3, 0.59, 0.11]), 90)
    return np.round(255 * np.clip(scale * shot.color, 0, 1) ** (1 / 2.2)).astype(np.uint8)


def marigold_shot(root: Path, split: str, scene: str, frame: int, shot: Shot) -> None:
    """The files of one image as Marigold's preprocessing of Hypersim writes them."""
    folder, name = root / split / scene, f"cam_00_fr{frame:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    save_png(folder / f"rgb_{name}.png", hypersim_image(shot))
    save_png(folder / f"depth_plane_{name}.png", np.round(1000 * shot.depth).astype(np.uint16))
    for kind, values in (("normal_cam", shot.normal), ("albedo", shot.albedo), ("shading", shot.shading)):
        np.save(folder / f"{kind}_{name}.npy", values)


def vkitti2(root: Path, images: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Scene, image uint8 (H,W,3) and planar depth in metres, inf in the sky -> frames of its "clone", Camera_0."""
    for number, (scene, rgb, depth) in enumerate(images):
        paths = [
            root / kind / scene / "clone" / "frames" / kind / "Camera_0" / f"{kind}_{number:05d}{ending}"
            for kind, ending in (("rgb", ".jpg"), ("depth", ".png"))
        ]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(paths[0], quality=95)
        save_png(paths[1], np.where(np.isinf(depth), 65535, np.round(100 * depth)).astype(np.uint16))


def interiorverse_shot(folder: Path, scene: str, number: int, shot: Shot, valid: np.ndarray) -> None:
    """The files of one image below a folder scenes_85; where not valid they hold inf and zeros."""
    stem = folder / scene / f"{number:03d}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    maps = {
        "im": (shot.color, "RGB"),
        "albedo": (np.where(valid[..., None], shot.albedo, 0), "RGB"),
        "normal": (np.where(valid[..., None], shot.normal, 0), "RGB"),
        "depth": (np.where(valid, 1000 * shot.depth, np.inf), "Y"),
        "mask": (valid.astype(float), "Y"),
    }
    for kind, (values, channels) in maps.items():
        write_exr(stem.with_name(f"{stem.name}_{kind}.exr"), values, channels, {})
