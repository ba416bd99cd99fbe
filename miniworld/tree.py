"""Writing rendered scenes as a DIODE tree with pseudo labels: names, suffixes, shapes, dtypes and flaws of the real one.

<root>/diode_meta.json, <root>/depths/..., <root>/normals/...     as DIODE (dataloaders/diode.py lists the files)
<root>/pseudo/<normal|depth|albedo|shading>/<same tree>.png       dense 8-bit labels, in the released conventions
<root>/miniworld.json                                             the settings, written last: the tree is complete
"""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from miniworld.materials import to_srgb
from miniworld.raycast import Rendering

TASKS = ("normal", "depth", "albedo", "shading")
SCENE_TYPES = {"indoors": "room", "outdoor": "yard"}  # DIODE's name -> kind of scene
SCANS_PER_SCENE, IMAGES_PER_SCAN = 2, 5
MASK_DTYPES = (np.float64, np.bool_, np.float32, np.uint8)  # real masks differ from file to file
SETTINGS = "miniworld.json"


@dataclass(frozen=True)
class Settings:
    """What the files depend on; equal settings give equal bytes."""

    train: int
    val: int
    width: int
    height: int
    seed: int
    version: int = 1  # raise it when the pictures change


def samples(settings: Settings) -> list[tuple[str, str, int]]:
    """(stem path, scene type, number within its split) of every image; every second one is outdoors."""
    listed = []
    for split, count in (("train", settings.train), ("val", settings.val)):
        first_scene = 0 if split == "train" else 500  # splits share no scene
        for index in range(count):
            scene_type = list(SCENE_TYPES)[index % 2]
            scan, view = divmod(index // 2, IMAGES_PER_SCAN)
            scene = first_scene + 2 * (scan // SCANS_PER_SCENE) + index % 2
            name = f"{scene:05d}_{scan:05d}_{scene_type}_{view * 40 % 360:03d}_{view * 10 % 60:03d}"
            listed.append((f"{split}/{scene_type}/scene_{scene:05d}/scan_{scan:05d}/{name}", scene_type, index))
    return listed


def write_tree(root: Path, settings: Settings, workers: int, overwrite: bool) -> None:
    """Render everything under `root`; do nothing if a finished tree of the same settings is there.

    Raises FileExistsError where `root` holds another world, unless `overwrite`, or anything else, in any case.
    """
    wanted = asdict(settings)
    if (root / SETTINGS).is_file() and json.loads((root / SETTINGS).read_text()) == wanted:
        print(f"{root}: already rendered with these settings")
        return
    unfinished = root / f"{SETTINGS}.part"
    if root.exists() and any(root.iterdir()):
        if not (root / SETTINGS).is_file() and not unfinished.is_file():
            raise FileExistsError(f"{root} holds files that are not a rendered world: choose another --root")
        if not overwrite and not unfinished.is_file():
            raise FileExistsError(f"{root} holds another world: pass --overwrite, or another --root")
        shutil.rmtree(root)  # an interrupted or outdated tree is never completed: files of two settings never mix
    root.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(json.dumps(wanted))

    listed, meta = samples(settings), {}
    for stem, *_ in listed:
        split, scene_type, scene, scan, name = stem.split("/")
        scans = meta.setdefault(split, {}).setdefault(scene_type, {}).setdefault(scene, {})
        scans.setdefault(scan, []).append(name)
        for branch in ("depths", "normals", *(f"pseudo/{task}" for task in TASKS)):
            (root / branch / stem).parent.mkdir(parents=True, exist_ok=True)
    (root / "diode_meta.json").write_text(json.dumps(meta, indent=1))
    job, bar = partial(write_sample, root, settings), {"total": len(listed), "desc": "rendering", "unit": "scene"}
    if workers == 1:
        list(tqdm(map(job, listed), **bar))
    else:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            list(tqdm(pool.map(job, listed, chunksize=8), **bar))
    unfinished.rename(root / SETTINGS)


def write_sample(root: Path, settings: Settings, sample: tuple[str, str, int]) -> None:
    """Render one image from (seed, split, number) and write all of its files."""
    from miniworld.scenes import render  # scenes imports this module

    stem, scene_type, index = sample
    seed = [settings.seed, int(stem.startswith("val/")), index]
    rendering = render(seed, SCENE_TYPES[scene_type], settings.height, settings.width)
    Image.fromarray(rendering.rgb).save(root / "depths" / f"{stem}.png")
    np.save(root / "depths" / f"{stem}_depth.npy", (rendering.depth * rendering.valid)[..., None])
    mask = rendering.valid.astype(MASK_DTYPES[index % len(MASK_DTYPES)])
    np.save(root / "depths" / f"{stem}_depth_mask.npy", mask)
    length = np.float32(1 + 1e-3 * (index % 3))  # DIODE's normals are not always of unit length
    np.save(root / "normals" / f"{stem}_normal.npy", rendering.normal * rendering.valid[..., None] * length)
    for task, label in labels(rendering).items():
        Image.fromarray(label).save(root / "pseudo" / task / f"{stem}.png")


def labels(rendering: Rendering) -> dict[str, np.ndarray]:
    """Dense uint8 (H,W,3) labels of the four tasks, in the released code's conventions.

    normal: round(255 (n/2 + 0.5)) with n in OpenCV's frame (x right, y down, z forward: raw Y and Z negated); the sky
    faces the viewer. depth: linear, near = white, stretched between the 2nd and 98th percentile of the visible depths
    and clipped; the sky is as far as can be, black. albedo, shading: sRGB-coded; the sky is its colour times 1.
    """
    visible = rendering.depth > 0
    near, far = np.percentile(rendering.depth[visible], [2, 98]) if visible.any() else (0, 1)
    closeness = 1 - np.clip((rendering.depth - near) / max(far - near, 1e-6), 0, 1)
    depth = np.where(visible, closeness, 0)[..., None].repeat(3, axis=2)
    normal = rendering.normal * np.float32([1, -1, -1]) / 2 + 0.5
    maps = {
        "normal": normal,
        "depth": depth,
        "albedo": to_srgb(rendering.albedo),
        "shading": to_srgb(rendering.shading),
    }
    return {task: np.round(255 * np.clip(values, 0, 1)).astype(np.uint8) for task, values in maps.items()}
