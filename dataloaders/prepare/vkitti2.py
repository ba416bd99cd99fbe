"""Virtual KITTI 2 (2001.10773): outdoor depth, unpacked.

    rgb/SceneNN/<variation>/frames/rgb/Camera_{0,1}/rgb_IIIII.jpg
    depth/SceneNN/<variation>/frames/depth/Camera_{0,1}/depth_IIIII.png     uint16, planar, centimetres; sky 65535,
                                                                            which is beyond FARTHEST

Depth counts up to 80 m, and Scene01 is held out, as in Marigold (2312.02145). What is farther is black in labels, as
the sky is.
"""

import argparse
from pathlib import Path

import numpy as np

from dataloaders.prepare.writer import Frame, Item, Plan
from utils.errors import InputError
from utils.image_io.files import read_array
from utils.image_io.images import size_of

HELD_OUT = "Scene01"
FARTHEST = 80.0  # metres


def plan(args: argparse.Namespace) -> Plan:
    source = args.source
    items = []
    for path in sorted((source / "rgb").glob("Scene*/*/frames/rgb/Camera_*/rgb_*.jpg")):
        scene, variation, _, _, camera, name = path.relative_to(source / "rgb").parts
        number = Path(name).stem.removeprefix("rgb_")
        depth = source / "depth" / scene / variation / "frames" / "depth" / camera / f"depth_{number}.png"
        split = "val" if scene == HELD_OUT else "train"
        items.append(Item(split, f"{scene}/{variation}_{camera}_{number}", (path, depth)))
    if not items:
        raise InputError(
            f"--source {source}: no rgb/SceneNN/<variation>/frames/rgb/Camera_N/rgb_*.jpg; pass the folder that holds "
            "rgb/ and depth/ of Virtual KITTI 2"
        )
    settings = {"depth": {"farthest_metres": FARTHEST, "held_out": HELD_OUT}}
    return Plan(
        "Virtual KITTI 2", "vkitti", sorted(items), ("depth",), read, settings, image_ending=".jpg", published=False
    )


def read(item: Item) -> Frame:
    image, path = item.key
    try:
        raw = read_array(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise InputError(f"{path}: {raw.dtype} {raw.shape}, not uint16 (H, W) centimetres; take the published file")
    if size_of(image) != raw.shape[::-1]:
        raise InputError(
            f"{path}: {raw.shape[1]}x{raw.shape[0]} depth for a {'x'.join(map(str, size_of(image)))} image"
        )
    known = (raw > 0) & (raw <= 100 * FARTHEST)
    return Frame(image, {"depth": (np.where(raw > 100 * FARTHEST, np.inf, raw / 100), known)})
