"""InteriorVerse (2211.03017): indoor albedo, normals and depth, unpacked.

    SOURCE/{scenes,dataset}_85/<scene>/IIII_{im,albedo,normal,depth,mask}.exr     or that folder itself
    SOURCE/{scenes,dataset}_85/{train,val,test}.txt                               or in SOURCE: lists of scenes

Linear light; normals x right, y up, z toward the viewer; depth in millimetres, inf where there is none, taken for
planar, which its normals confirm or refute; mask: not zero = valid. 85: the horizontal angle of view in degrees.
The image is clipped to [0, 1] and sRGB-coded. Lists may also be those of images, as Marigold's are.
"""

import argparse
import re
from functools import partial
from pathlib import Path

import numpy as np

from dataloaders.prepare.geometry import facing_normals, image_rays, pinhole
from dataloaders.prepare.writer import DroppedError, Frame, Item, Plan, colours
from utils.errors import InputError
from utils.image_io.colour_space import to_srgb
from utils.image_io.files import read_array

FOLDER = re.compile(r"(?:scenes|dataset)_(\d+)")
TASKS = ("normal", "depth", "albedo")


def plan(args: argparse.Namespace) -> Plan:
    folders = [path for path in (args.source, *sorted(args.source.iterdir())) if FOLDER.fullmatch(path.name)]
    if len(folders) != 1:
        found = ", ".join(path.name for path in folders) or "none"
        raise InputError(f"--source {args.source}: pass the one folder scenes_85 or dataset_85 (there: {found})")
    folder = folders[0]
    splits = split_of_scenes([folder, folder.parent])
    images = [path for path in sorted(folder.glob("*/*_im.exr")) if path.parent.name in splits]
    items = [
        Item(splits[path.parent.name], f"{path.parent.name}/{path.name.removesuffix('_im.exr')}", (folder,))
        for path in images
        if splits[path.parent.name] != "test"
    ]
    if not items:
        raise InputError(f"{folder}: no <scene>/IIII_im.exr of a scene that train.txt or val.txt lists")
    angle = float(FOLDER.fullmatch(folder.name)[1])  # type: ignore[index]  # it matched above
    own_read = partial(read, tangent=np.tan(np.radians(angle / 2)))
    return Plan("InteriorVerse", "interiorverse", sorted(items), TASKS, own_read)


def split_of_scenes(folders: list[Path]) -> dict[str, str]:
    """Scene -> train, val or test, by the lists in the first of the folders that holds train.txt and val.txt."""
    place = next(
        (path for path in folders if all((path / f"{name}.txt").is_file() for name in ("train", "val"))), None
    )
    if place is None:
        raise InputError(
            f"{folders[0]}: no train.txt and val.txt; put the set's own lists of scenes there (test.txt too), or "
            "Marigold's, under these names"
        )
    splits: dict[str, str] = {}
    for split in ("train", "val", "test"):
        path = place / f"{split}.txt"
        for word in path.read_text().split("\n") if path.is_file() else ():
            parts = [part for part in Path(*word.split()[:1]).parts if not FOLDER.fullmatch(part)]
            if not parts:
                continue
            if splits.setdefault(parts[0], split) != split:
                raise InputError(f"{path}: {parts[0]} is listed for {splits[parts[0]]} too; remove it from one")
    return splits


def read(item: Item, tangent: float) -> Frame:
    stem = item.key[0] / item.name
    rgb, mask, normals, depth, albedo = (exr(stem, name) for name in ("im", "mask", "normal", "depth", "albedo"))
    if not np.isfinite(rgb).all():
        raise DroppedError("image: NaN or inf")
    height, width = rgb.shape[:2]
    inside = (mask != 0).all(axis=2) if mask.ndim == 3 else mask != 0
    rays = image_rays(pinhole(tangent, height, width), height, width)
    frame = Frame(np.round(255 * to_srgb(rgb.clip(0, 1))).astype(np.uint8), {}, rays=rays, stored=normals)
    unit, directed, frame.facts["turned_normals"] = facing_normals(normals, rays)
    frame.maps["normal"] = unit, directed & inside
    metres = (depth[..., 0] if depth.ndim == 3 else depth) / 1000.0
    known = inside & np.isfinite(metres) & (metres > 0)
    frame.maps["depth"] = np.where(known, metres, 0), known

    def reflectance() -> tuple[np.ndarray, np.ndarray]:
        colours(albedo, inside, "albedo")
        return albedo, inside

    frame.add("albedo", reflectance)
    return frame


def exr(stem: Path, name: str) -> np.ndarray:
    """One map as floats. InputError where it cannot be read."""
    path = stem.with_name(f"{stem.name}_{name}.exr")
    try:
        return read_array(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
