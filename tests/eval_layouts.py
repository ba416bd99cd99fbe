"""The field's test sets, tiny, in their own layouts: exact scenes, and predictions of them with a known error."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from miniworld.scenes import render
from utils.image_io.colour_space import to_srgb
from utils.image_io.files import save_png, write_exr
from utils.kinds.axes import to_frame, unit_vectors

OPENGL_TO_OPENCV = np.array([1.0, -1.0, -1.0])


class Scene(NamedTuple):
    """Maps of one rendered scene; normals in opencv axes, albedo and shading linear."""

    rgb: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    albedo: np.ndarray
    shading: np.ndarray


class Stored(NamedTuple):
    """One image as it was written. image: its path below the set's folder. truth: as its files' numbers decode, in
    this project's conventions (normals in opencv axes, metres, sRGB-coded albedo, linear shading). valid: by the
    set's own rule, with its crop.
    """

    image: str
    truth: np.ndarray
    valid: np.ndarray


def scene(index: int, height: int = 48, width: int = 64, zoom: int = 1, kind: str = "room") -> Scene:
    """Every pixel of a rendered scene `zoom` times larger."""
    found = render([11, index], kind, height, width)
    maps = found.rgb, found.depth, found.normal * OPENGL_TO_OPENCV, found.albedo, found.shading
    return Scene(*(one.repeat(zoom, axis=0).repeat(zoom, axis=1) for one in maps))


def save(path: Path, array: np.ndarray) -> None:
    """By the ending: .npy, .exr (R,G,B or one channel), .png of 8 or 16 bits, .jpg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".exr":
        write_exr(path, array, "RGB" if array.ndim == 3 else "Y", {})
    elif path.suffix == ".png" and array.dtype == np.uint16:
        save_png(path, array)
    else:
        Image.fromarray(array).save(path, "JPEG" if path.suffix.lower() == ".jpg" else "PNG")


def write_dsine(folder: str, stem: str, ending: str, bits: int, scenes: int = 4) -> Callable[[Path], list[Stored]]:
    def write(data: Path) -> list[Stored]:
        found = []
        for index in range(scenes):
            one, place = scene(index), f"{stem.format(index)}"
            axes, hole = to_frame(one.normal, "dsine"), np.s_[:4]
            if bits == 32:
                values = axes.astype(np.float32)
                values[hole] *= 0.3  # shorter than 0.5: not valid
            else:
                top = 2**bits - 1
                values = np.rint((axes / 2 + 0.5) * top).astype(np.uint8 if bits == 8 else np.uint16)
                values[hole] = 0
                axes = values / top * 2 - 1
            save(data / "dsine_eval" / folder / f"{place}_img.png", one.rgb)
            save(data / "dsine_eval" / folder / f"{place}_normal.{ending}", values)
            save(data / "dsine_eval" / folder / f"{place}_intrins.npy", np.eye(3))
            valid = np.ones(one.depth.shape, bool)
            valid[hole] = False
            found.append(Stored(f"{place}_img.png", unit_vectors(axes * (-1, -1, -1)), valid))
        return found

    return write


def write_marigold_normals(folder: str, stem: str) -> Callable[[Path], list[Stored]]:
    def write(data: Path) -> list[Stored]:
        found = []
        for index in range(4):
            one, place = scene(index), stem.format(index)
            values = to_frame(one.normal, "opengl").astype(np.float32)
            values[:4] = 0
            save(data / folder / f"{place}_img.png", one.rgb)
            save(data / folder / f"{place}_normal.npy", values)
            found.append(Stored(f"{place}_img.png", one.normal, np.any(values != 0, axis=2)))
        return found

    return write


def write_nyuv2(data: Path) -> list[Stored]:
    found = []
    for index in range(2):
        one, place = scene(index, 60, 80, zoom=8), f"test/bath_{index:04}"
        stored = np.rint(one.depth * 1000).astype(np.uint16)
        stored[100:110] = 0
        for name in ("depth", "filled"):
            save(data / f"nyuv2/tar/{place}/{name}_{index:04}.png", stored)
        save(data / f"nyuv2/tar/{place}/rgb_{index:04}.png", one.rgb)
        crop = np.zeros(stored.shape, bool)
        crop[45:471, 41:601] = True
        found.append(Stored(f"{place}/rgb_{index:04}.png", stored / 1000, crop & (stored > 1) & (stored < 10_000)))
    return pack(data / "nyuv2/tar", data / "nyuv2/nyu_labeled_extracted.tar", found)


def write_kitti(data: Path) -> list[Stored]:
    found, tar = [], data / "kitti/tar"
    for index in range(2):
        one, drive, name = scene(index, 25, 83, zoom=15), f"2011_09_26_drive_{index:04}_sync", f"{index:010}"
        stored = np.rint(one.depth * 5 * 256).astype(np.uint16)
        stored[:, ::2] = 0  # LiDAR is sparse
        rgb = f"2011_09_26/{drive}/image_02/data/{name}.png"
        save(tar / rgb, one.rgb)
        save(tar / f"{drive}/proj_depth/groundtruth/image_02/{name}.png", stored)
        height, width = stored.shape
        left, window = (width - 1216) // 2, np.zeros(stored.shape, bool)
        window[height - 352 + int(0.3324324 * 352) : height - 352 + int(0.91351351 * 352),
               left + int(0.0359477 * 1216) : left + int(0.96405229 * 1216)] = True  # fmt: skip
        valid = window & (stored > 0) & (stored < 80 * 256)
        crop = np.s_[height - 352 :, left : left + 1216]
        found.append(Stored(rgb, (stored / 256)[crop], valid[crop]))
    save(tar / "2011_09_26/2011_09_26_drive_0009_sync/image_02/data/0000000000.png", one.rgb)  # without truth
    return pack(tar, data / "kitti/kitti_eigen_split_test.tar", found)


def write_eth3d(data: Path) -> list[Stored]:
    found, tar = [], data / "eth3d/tar"
    for index in range(2):
        one, name = scene(index), f"DSC_{index:04}.JPG"
        stored = one.depth.astype("<f4")
        stored[:, :7] = np.inf
        rgb, truth = f"rgb/yard{index}/images/dslr_images/{name}", f"depth/yard{index}_dslr_depth/yard{index}"
        save(tar / rgb, one.rgb)
        path = tar / truth / "ground_truth_depth/dslr_images" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(stored.tobytes())
        found.append(Stored(rgb, np.where(np.isfinite(stored), stored, 0), np.isfinite(stored)))
    return pack(tar, data / "eth3d/eth3d.tar", found)


def write_scannet(data: Path) -> list[Stored]:
    found, tar = [], data / "scannet/tar"
    for index in range(2):
        one, place = scene(index), f"scene{index:04}_00"
        stored = np.rint(one.depth * 1000).astype(np.uint16)
        stored[:3] = 0
        save(tar / place / "color/000100.jpg", one.rgb)
        save(tar / place / "depth/000100.png", stored)
        found.append(Stored(f"{place}/color/000100.jpg", stored / 1000, (stored > 1) & (stored < 10_000)))
    return pack(tar, data / "scannet/scannet_val_sampled_800_1.tar", found)


def write_diode(data: Path) -> list[Stored]:
    found, tar = [], data / "diode/tar"
    for index in range(2):
        one, place = scene(index), f"{('indoors', 'outdoor')[index]}/scene_00019/scan_00183/{index:05}"
        mask = np.ones(one.depth.shape)
        mask[:, 50:] = 0
        save(tar / f"{place}.png", one.rgb)
        save(tar / f"{place}_depth.npy", one.depth[..., None].astype(np.float32))
        save(tar / f"{place}_depth_mask.npy", mask)
        found.append(Stored(f"{place}.png", one.depth, mask > 0))
    return pack(tar, data / "diode/diode_val.tar", found)


def write_diode_normals(data: Path) -> list[Stored]:
    found = []
    for index in range(4):
        one, place = scene(index), f"val/indoors/scene_00019/scan_00183/{index:05}"
        values = to_frame(one.normal, "opengl").astype(np.float32)
        values[:, :5] = 0
        save(data / f"DIODE/depths/{place}.png", one.rgb)
        save(data / f"DIODE/normals/{place}_normal.npy", values)
        save(data / f"DIODE/normals/{place.replace('val', 'train', 1)}_normal.npy", values)  # not a test image
        found.append(Stored(f"depths/{place}.png", one.normal, np.any(values != 0, axis=2)))
    return found


def write_hypersim(what: str) -> Callable[[Path], list[Stored]]:
    def write(data: Path) -> list[Stored]:
        found = []
        for index in range(2):
            one, place, frame = scene(index), f"hypersim/test/ai_001_00{index}", f"cam_00_fr{index:04}"
            save(data / f"{place}/rgb_{frame}.png", one.rgb)
            stored = (one.albedo if what == "albedo" else 30 * one.shading).astype(np.float32)
            save(data / f"{place}/{what}_{frame}.npy", stored)
            residual = 0.2 * stored[::-1]
            save(data / f"{place}/residual_{frame}.npy", residual)
            top = max(np.percentile(stored.astype(float), 98), np.percentile(residual.astype(float), 98))
            truth = to_srgb(stored.astype(float)) if what == "albedo" else stored.clip(0, top) / top
            name = f"{place.removeprefix('hypersim/')}/rgb_{frame}.png"
            found.append(Stored(name, truth, np.ones(stored.shape[:2], bool)))
        return found

    return write


def write_interiorverse(data: Path) -> list[Stored]:
    found, tar = [], data / "interiorverse/tar"
    for index in range(2):
        one, place = scene(index), f"L3D124S8ENDIDQ{index}/{index:04}"
        mask = np.ones(one.depth.shape, np.float32)
        mask[:, :9] = 0
        save(tar / f"{place}_im.exr", one.albedo * one.shading)
        save(tar / f"{place}_albedo.exr", one.albedo)
        save(tar / f"{place}_mask.exr", mask)
        found.append(Stored(f"{place}_im.exr", to_srgb(one.albedo.astype(np.float32).astype(float)), mask > 0))
    return pack(tar, data / "interiorverse/InteriorVerse.tar", found)


def write_iiw(data: Path) -> list[Stored]:
    """Six images, of which every fifth counts; their judgements follow the albedo, but for a sixth of the weight."""
    found = []
    for index in range(6):
        one = scene(index)
        light, (rows, columns) = one.albedo.mean(axis=2), one.depth.shape
        places = [(0.1 + 0.15 * k, 0.12 + 0.14 * k) for k in range(6)]
        points = [{"id": k, "x": x, "y": y, "opaque": True} for k, (x, y) in enumerate(places)]
        comparisons = []
        for k in range(5):
            a, b = (light[int(places[n][1] * rows), int(places[n][0] * columns)] for n in (k, k + 1))
            verdict = "1" if b / a > 1.1 else "2" if a / b > 1.1 else "E"
            comparisons.append({"point1": k, "point2": k + 1, "darker": verdict, "darker_score": 1.0})
        wrong = {"1": "2", "2": "E", "E": "1"}[comparisons[0]["darker"]]
        comparisons.append({"point1": 0, "point2": 1, "darker": wrong, "darker_score": 1.0})
        save(data / f"iiw/{100 + index}.png", one.rgb)
        content = {"intrinsic_points": points, "intrinsic_comparisons": comparisons}
        (data / f"iiw/{100 + index}.json").write_text(json.dumps(content))
        if index % 5 == 0:
            found.append(Stored(f"{100 + index}.png", to_srgb(one.albedo.astype(float)), np.ones(light.shape, bool)))
    return found


def pack(folder: Path, archive: Path, found: list[Stored]) -> list[Stored]:
    """Replace a folder by an archive as Marigold's are: names begin with ./"""
    with tarfile.open(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                info = tarfile.TarInfo(f"./{path.relative_to(folder).as_posix()}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
                path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()
    return found


WRITERS: dict[str, Callable[[Path], list[Stored]]] = {
    "dsine-nyuv2": write_dsine("nyuv2", "test/{:06}", "png", 8),
    "dsine-scannet": write_dsine("scannet", "scene{:04}_00/000100", "png", 8),
    "dsine-ibims": write_dsine("ibims", "ibims/corridor_{:02}", "exr", 32),
    "dsine-sintel": write_dsine("sintel", "alley_1/frame_{:04}", "exr", 32),
    "dsine-vkitti": write_dsine("vkitti", "Scene01/{:05}", "png", 16),
    "marigold-nyuv2-normal": write_marigold_normals("nyuv2", "test/{:06}"),
    "marigold-scannet-normal": write_marigold_normals("scannet", "scene{:04}_00/000100"),
    "marigold-ibims-normal": write_marigold_normals("ibims", "corridor_{:02}"),
    "marigold-diode-normal": write_marigold_normals("diode/val", "{:05}"),
    "marigold-oasis-normal": write_marigold_normals("oasis", "{:05}"),
    "diode-normal": write_diode_normals,
    "nyuv2-depth": write_nyuv2,
    "kitti-depth": write_kitti,
    "eth3d-depth": write_eth3d,
    "scannet-depth": write_scannet,
    "diode-depth": write_diode,
    "hypersim-albedo": write_hypersim("albedo"),
    "hypersim-shading": write_hypersim("shading"),
    "interiorverse-albedo": write_interiorverse,
    "iiw-albedo": write_iiw,
}


def turned(normals: np.ndarray, degrees: float) -> np.ndarray:
    """Unit normals (H, W, 3), each turned by that angle exactly, around axes of all directions."""
    across = unit_vectors(np.cross(normals, [0.36, 0.48, 0.8]))
    return np.cos(np.radians(degrees)) * normals + np.sin(np.radians(degrees)) * across
