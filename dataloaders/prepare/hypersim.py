"""Hypersim (2011.02523): indoor images with exact depth, normals, albedo and shading.

    SOURCE/ai_VVV_NNN/ or SOURCE/ai_VVV_NNN.zip        as published: unpacked, or read in place
        images/scene_cam_XX_final_hdf5/frame.IIII.{color,diffuse_reflectance,diffuse_illumination}.hdf5
        images/scene_cam_XX_geometry_hdf5/frame.IIII.{depth_meters,normal_cam,position,render_entity_id}.hdf5
        _detail/cam_XX/camera_keyframe_positions.hdf5
    SOURCE/{train,val}/ai_VVV_NNN/{rgb,depth_plane,normal_cam,albedo,shading}_cam_XX_frIIII.{png,npy}
                                                       as Marigold's preprocessing writes them (2312.02145)

color = diffuse_reflectance x diffuse_illumination + residual, linear light. depth_meters is the distance to the
camera's centre. More than half of the scenes were rendered with a tilt-shift lens. --camera_csv has their cameras; a
scene's points (`position`) show whether it can do without.
"""

import argparse
import csv
import io
import re
import zipfile
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataloaders.prepare.geometry import (
    facing_normals,
    image_axes,
    image_rays,
    is_camera_of,
    pinhole,
    planar,
)
from dataloaders.prepare.writer import DroppedError, Frame, Item, Plan, colours
from utils.errors import InputError, note
from utils.image_io.files import read_array
from utils.image_io.images import read_rgb

TANGENT = np.tan(np.pi / 6)  # of half the angle of view of an ordinary scene: 886.81 pixels at 1024
GAMMA = 2.2
BRIGHT, AT = 0.8, 90  # the tone mapping's percentile of brightness, and where it goes
SHADED = 98  # percentile of shading that becomes 1, as in Marigold's decomposition
BEST_PSNR = 99.0  # dB, of an image without any residual
NEEDS = {
    "normal": ("geometry.normal_cam",),
    "depth": ("geometry.depth_meters",),
    "albedo": ("final.diffuse_reflectance", "final.diffuse_illumination"),
    "shading": ("final.diffuse_reflectance", "final.diffuse_illumination"),
}
PROCESSED = {
    "normal": "normal_cam_{}.npy", "depth": "depth_plane_{}.png",
    "albedo": "albedo_{}.npy", "shading": "shading_{}.npy",
}  # fmt: skip
RGB = re.compile(r"rgb_(cam_\d+_fr\d+)\.png")


class Shot(NamedTuple):
    """One image among the published files. place: folder or zip of its scene."""

    place: Path
    scene: str
    camera: str
    frame: int

    def member(self, name: str) -> str:
        """The file of "final.color" and the like, below the scene."""
        group, _, kind = name.partition(".")
        return f"images/scene_{self.camera}_{group}_hdf5/frame.{self.frame:04d}.{kind}.hdf5"


class Options(NamedTuple):
    """tasks: intrinsics to read. cameras: scene -> camera matrix, None without --camera_csv. min_psnr: in dB."""

    tasks: tuple[str, ...]
    cameras: Mapping[str, np.ndarray] | None
    min_psnr: float | None


def plan(args: argparse.Namespace) -> Plan:
    if any(next((args.source / split).glob("ai_*/rgb_cam_*.png"), None) for split in ("train", "val")):
        return _processed_plan(args)
    if args.split_csv is None:
        raise InputError(
            "--split_csv is missing: metadata_images_split_scene_v1.csv, from evermotion_dataset/analysis of "
            "Hypersim's repository"
        )
    shots, lost = _listed(args)
    try:
        import h5py  # noqa: F401 - optional: requirements-extra.txt
    except ModuleNotFoundError:
        raise InputError(
            "--source: Hypersim's files need the package h5py, which is not installed: pip install h5py"
        ) from None
    if lost:
        note(f"--split_csv lists {lost} more images of train and val, which are not in {args.source}")
    first = shots[0].key[0]
    tasks = tuple(task for task, needed in NEEDS.items() if all(_has(first, first.member(each)) for each in needed))
    if missing := [task for task in NEEDS if task not in tasks]:
        note(f"no {', '.join(missing)}: {first.scene} lacks the files")
    if args.min_diffuse_psnr is not None and "albedo" not in tasks:
        raise InputError("--min_diffuse_psnr means nothing without albedo and shading; leave it out")
    cameras = None if args.camera_csv is None else _cameras(args.camera_csv)
    if cameras is None and {"normal", "depth"} & set(tasks) and not _has(first, first.member("geometry.position")):
        raise InputError(
            f"{first.place}: no geometry.position files, by which a tilt-shift camera is noticed; pass --camera_csv, "
            "metadata_camera_parameters.csv from contrib/mikeroberts3000 of Hypersim's repository"
        )
    camera = {"cameras": "metadata_camera_parameters.csv" if cameras else "60 degrees, without the scenes of others"}
    settings: dict[str, dict] = dict.fromkeys(("normal", "depth"), camera)
    settings |= {task: {"min_diffuse_psnr": args.min_diffuse_psnr} for task in ("albedo", "shading")}
    options = Options(tasks, cameras, args.min_diffuse_psnr)
    return Plan("Hypersim", "hypersim", shots, tasks, partial(read, options), settings)


def _listed(args: argparse.Namespace) -> tuple[list[Item], int]:
    """The released images of train and val that are in the source, and how many are not."""
    places = {path.name.removesuffix(".zip"): path for path in sorted(args.source.glob("ai_*"), reverse=True)}
    items, lost = [], 0
    columns = "scene_name camera_name frame_id included_in_public_release split_partition_name"
    for row in _rows(args.split_csv, columns):
        split, scene, camera = (row[key] for key in ("split_partition_name", "scene_name", "camera_name"))
        if row["included_in_public_release"] != "True" or split not in ("train", "val"):
            continue
        shot = Shot(places.get(scene, args.source / scene), scene, camera, int(row["frame_id"]))
        if scene in places and _has(shot, shot.member("final.color")):
            items.append(Item(split, f"{scene}/{camera}_fr{shot.frame:04d}", (shot,)))
        else:
            lost += 1
    if not items:
        raise InputError(
            f"--source {args.source}: none of the images of --split_csv ({lost}) is there; pass the folder that holds "
            "ai_001_001/ or ai_001_001.zip and the like"
        )
    return items, lost


def _rows(path: Path, columns: str) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if missing := [name for name in columns.split() if not rows or name not in rows[0]]:
        raise InputError(f"{path}: no column {missing[0]}; take the file from Hypersim's repository")
    return rows


def _cameras(path: Path) -> dict[str, np.ndarray]:
    names = [f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3)]
    rows = _rows(path, " ".join(["scene_name", *names]))
    return {row["scene_name"]: np.array([float(row[name]) for name in names]).reshape(3, 3) for row in rows}


# Files ---------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _archive(path: Path) -> tuple[zipfile.ZipFile, frozenset[str]]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: broken or cut off ({error}); download it again") from None
    return archive, frozenset(archive.namelist())


def _has(shot: Shot, member: str) -> bool:
    if shot.place.suffix == ".zip":
        return f"{shot.scene}/{member}" in _archive(shot.place)[1]
    return (shot.place / member).is_file()


def _array(shot: Shot, member: str) -> np.ndarray:
    """The array of one HDF5 file, as stored. InputError where it is missing or broken."""
    import h5py

    try:
        if shot.place.suffix == ".zip":
            content = _archive(shot.place)[0].read(f"{shot.scene}/{member}")
        else:
            content = (shot.place / member).read_bytes()
        with h5py.File(io.BytesIO(content)) as file:
            return file["dataset"][()]
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{shot.place}: {member}: cannot be read ({error}); download it again") from None


# One image -----------------------------------------------------------------------------------------------------------


def exposure(color: np.ndarray) -> float:
    """The scale of Hypersim's tone mapping: it brings the 90th percentile of brightness to 0.8^2.2.

    color (H,W,3): linear, with a surface at every pixel (elsewhere only those with one count). 0 for a black image.
    """
    bright = np.percentile(color @ np.array([0.3, 0.59, 0.11]), AT)
    return 0.0 if bright < 1e-4 else float(BRIGHT**GAMMA / bright)


def tone_mapped(linear: np.ndarray) -> np.ndarray:
    return np.clip(linear, 0, 1) ** (1 / GAMMA)


def read(options: Options, item: Item) -> Frame:
    (shot,) = item.key

    def array(name: str) -> np.ndarray:
        return _array(shot, shot.member(name))

    if (array("geometry.render_entity_id") == -1).any():
        raise DroppedError("render_entity_id -1 (pixels without a surface)")
    color = array("final.color").astype(np.float64)
    if not np.isfinite(color).all():
        raise DroppedError("color: NaN or inf")
    scale = exposure(color)
    if not scale:
        raise DroppedError("a black image")
    rgb = tone_mapped(scale * color)
    frame = Frame(np.round(255 * rgb).astype(np.uint8), {})
    geometry = [task for task in ("normal", "depth") if task in options.tasks]
    try:
        axes, rays = _axes_and_rays(shot, options, *rgb.shape[:2])
    except DroppedError as reason:
        frame.dropped |= dict.fromkeys(geometry, str(reason))
    else:
        frame.rays = rays
        for task in geometry:
            frame.add(task, partial(_geometry, array(NEEDS[task][0]), task, frame, axes, rays))
    if "albedo" in options.tasks:
        albedo, shading = (array(f"final.diffuse_{kind}").astype(float) for kind in ("reflectance", "illumination"))
        decompose(frame, albedo, shading)
        if "albedo" in frame.maps:
            _measure_residual(frame, rgb, tone_mapped(scale * albedo * shading), options.min_psnr)
    return frame


def _axes_and_rays(shot: Shot, options: Options, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """`image_axes` and `image_rays` of a scene's camera. DroppedError where it is not known."""
    camera = pinhole(TANGENT, height, width) if options.cameras is None else options.cameras.get(shot.scene)
    if camera is None:
        raise DroppedError("a scene that --camera_csv does not list")
    rays = image_rays(camera, height, width)
    if options.cameras is None and {"normal", "depth"} & set(options.tasks):
        centres = _array(shot, f"_detail/{shot.camera}/camera_keyframe_positions.hdf5")
        if not is_camera_of(rays, _array(shot, shot.member("geometry.position")), centres[shot.frame]):
            raise DroppedError("another camera, such as tilt-shift (--camera_csv has them)")
    return image_axes(camera), rays


def _geometry(
    raw: np.ndarray, task: str, frame: Frame, axes: np.ndarray, rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Normals or depth in the axes of the image, and where they are known."""
    if not np.isfinite(raw).all():
        raise DroppedError(f"{task}: NaN or inf")
    if task == "depth":
        return planar(raw.astype(np.float64), rays), raw > 0
    frame.stored = raw @ axes.T
    normals, known, frame.facts["turned_normals"] = facing_normals(frame.stored, rays)
    return normals, known


def decompose(frame: Frame, albedo: np.ndarray, shading: np.ndarray) -> None:
    """Add both to the frame, or why they are left out; shading is divided by its percentile and clipped."""
    everywhere = np.ones(albedo.shape[:2], bool)
    try:
        colours(albedo, everywhere, "albedo")
        colours(shading, everywhere, "shading", None)
        bright = float(np.percentile(shading, SHADED))
        if bright < 1e-6:
            raise DroppedError("black shading")
    except DroppedError as reason:
        frame.dropped |= dict.fromkeys(("albedo", "shading"), str(reason))
        return
    frame.facts["shading_percentile"] = bright
    frame.maps["albedo"] = albedo.clip(0, 1), everywhere
    frame.maps["shading"] = (shading / bright).clip(0, 1), everywhere


def _measure_residual(frame: Frame, rgb: np.ndarray, diffuse: np.ndarray, least: float | None) -> None:
    """Record how well albedo x shading alone gives the image, both tone-mapped (H,W,3); drop both below `least`."""
    error = float(np.mean((rgb - diffuse) ** 2))
    psnr = BEST_PSNR if error == 0 else min(BEST_PSNR, -10 * np.log10(error))
    frame.facts["diffuse_psnr"] = psnr
    if least is not None and psnr < least:
        for task in ("albedo", "shading"):
            del frame.maps[task]
            frame.dropped[task] = f"albedo x shading below {least:g} dB"


# Marigold's tree -----------------------------------------------------------------------------------------------------


def _processed_plan(args: argparse.Namespace) -> Plan:
    for flag in ("split_csv", "camera_csv", "min_diffuse_psnr"):
        if getattr(args, flag) is not None:
            raise InputError(
                f"--{flag} means nothing for {args.source}, a preprocessed tree (train/ai_.../rgb_*.png); leave it out"
            )
    items = []
    for split in ("train", "val"):
        for path in sorted((args.source / split).glob("ai_*/rgb_cam_*.png")):
            if found := RGB.fullmatch(path.name):
                items.append(Item(split, f"{path.parent.name}/{found[1]}", (path.parent, found[1])))
    folder, name = items[0].key
    tasks = tuple(task for task, file in PROCESSED.items() if (folder / file.format(name)).is_file())
    if not {"albedo", "shading"} <= set(tasks):  # one is of no use without the other: their reasons are shared
        tasks = tuple(task for task in tasks if task in ("normal", "depth"))
    if not tasks:
        raise InputError(f"--source {args.source}: images alone; depth_plane, normal_cam, albedo or shading is needed")
    settings = {task: {"preprocessed": "as Marigold's: tilt-shift cameras count as ordinary ones"} for task in tasks}
    return Plan("Hypersim", "hypersim", items, tasks, partial(read_processed, tasks), settings)


def read_processed(tasks: tuple[str, ...], item: Item) -> Frame:
    folder, name = item.key

    def array(task: str) -> np.ndarray:
        path = folder / PROCESSED[task].format(name)
        try:
            return read_array(path)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None

    rgb = np.asarray(read_rgb(folder / f"rgb_{name}.png"))
    height, width = rgb.shape[:2]
    rays = image_rays(pinhole(TANGENT, height, width), height, width)
    frame = Frame(rgb, {}, rays=rays)
    if "normal" in tasks:
        frame.stored = array("normal")
        normals, known, _ = facing_normals(frame.stored, rays)
        frame.maps["normal"] = normals, known
    if "depth" in tasks:
        raw = array("depth")
        if raw.dtype != np.uint16 or raw.ndim != 2:
            raise InputError(f"{folder}: depth_plane_{name}.png: {raw.dtype} {raw.shape}, not uint16 millimetres")
        frame.maps["depth"] = raw / 1000.0, raw > 0
    if "albedo" in tasks:
        decompose(frame, array("albedo").astype(np.float64), array("shading").astype(np.float64))
    return frame
