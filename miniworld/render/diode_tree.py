"""Rendered scenes as a DIODE tree with dense pseudo labels.

    ROOT/depths/SPLIT/TYPE/scene_XXXXX/scan_YYYYY/STEM.png, STEM_depth.npy, STEM_depth_mask.npy
    ROOT/normals/SPLIT/TYPE/scene_XXXXX/scan_YYYYY/STEM_normal.npy
    ROOT/pseudo/TASK/SPLIT/TYPE/scene_XXXXX/scan_YYYYY/STEM.png      TASK: normal, depth, albedo, shading
    ROOT/diode_meta.json, ROOT/miniworld.json

TYPE is "indoors" (rooms) or "outdoor" (yards), spelled as in DIODE. Each image shows its own world: scenes and
scans only mirror DIODE's folders, and the yaw and pitch in a stem are just numbers. A sample depends on (seed, split,
its index in the split) only, so that any number of workers writes the same bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from miniworld.render.raycast import Rendering, trace
from miniworld.render.rooms import draw_room
from miniworld.render.yards import draw_yard
from utils.image_io.colour_space import to_srgb
from utils.image_io.files import save_png
from utils.system.atomic import save_npy

# Increase when the same seed no longer gives the same image: folders of an older version are refused, not mixed.
WORLD_VERSION = 1
TASKS = ("normal", "depth", "albedo", "shading")
TRUTHS = ("albedo", "shading")
SPLITS = ("train", "val")
MASK_DTYPES = (np.float32, bool, np.uint8, np.float64)
IMAGES_PER_SCAN, SCANS_PER_SCENE = 4, 3
DRAW = {"indoors": draw_room, "outdoor": draw_yard}


@dataclass(frozen=True)
class Settings:
    """Everything that the bytes of a tree depend on."""

    train: int
    val: int
    width: int
    height: int
    seed: int = 0
    truth: bool = False
    version: int = WORLD_VERSION


@dataclass(frozen=True)
class Sample:
    """One image of the tree: `index` counts within its split, `stem` is DIODE's scene_scan_type_yaw_pitch."""

    split: str
    scene_type: str
    index: int
    scene: str
    scan: str
    stem: str

    @property
    def folder(self) -> Path:
        return Path(self.split, self.scene_type, self.scene, self.scan)


def list_samples(settings: Settings) -> Iterator[Sample]:
    """All samples in order, rooms and yards in turn. Scene numbers are unique in the tree, as in DIODE."""
    scene_number, scan_number = -1, -1
    for split in SPLITS:
        for parity, scene_type in enumerate(DRAW):
            for count, index in enumerate(range(parity, getattr(settings, split), 2)):
                place = count % IMAGES_PER_SCAN
                scan_number += place == 0
                scene_number += count % (IMAGES_PER_SCAN * SCANS_PER_SCENE) == 0
                stem = f"{scene_number:05d}_{scan_number:05d}_{scene_type}_{place * 90:03d}_{count % 3 * 10:03d}"
                yield Sample(split, scene_type, index, f"scene_{scene_number:05d}", f"scan_{scan_number:05d}", stem)


def render_sample(settings: Settings, sample: Sample) -> Rendering:
    """Render the sample: the same in every process."""
    seed = np.random.SeedSequence([settings.seed, SPLITS.index(sample.split), sample.index])
    return trace(DRAW[sample.scene_type](np.random.default_rng(seed)), settings.height, settings.width)


def encode_labels(rendering: Rendering) -> dict[str, np.ndarray]:
    """The four pseudo labels, (H, W, 3) uint8, a value at every pixel.

    normal: 255 (n/2 + 0.5) in the label frame x right, y down, z forward; the sky faces the viewer. depth: linear,
    near = white, 255 (far - d) / (far - near) clipped, with near and far the 2nd and 98th percentile of all depths but
    the sky's; the sky is black. albedo, shading: sRGB-coded, like the image, so decoded RGB = decoded albedo x
    decoded shading to within rounding.
    """
    sky = rendering.depth == 0
    near, far = depth_range(rendering)
    depth = np.where(sky, 0, np.clip((far - rendering.depth) / max(far - near, 1e-6), 0, 1))
    coded = {
        "normal": rendering.normal * np.float32([1, -1, -1]) / 2 + 0.5,
        "depth": np.repeat(depth[..., None], 3, axis=2),
        "albedo": to_srgb(rendering.albedo),
        "shading": to_srgb(rendering.shading),
    }
    return {task: np.round(255 * np.clip(values, 0, 1)).astype(np.uint8) for task, values in coded.items()}


def depth_range(rendering: Rendering) -> tuple[float, float]:
    """(near, far) in metres that the depth label codes as 255 and 0."""
    seen = rendering.depth[rendering.depth > 0]
    return tuple(np.percentile(seen, [2, 98])) if seen.size else (0.0, 1.0)


def sample_paths(settings: Settings, sample: Sample) -> dict[str, Path]:
    """Role -> path below the root, for each file of one sample."""
    depths, stem = Path("depths") / sample.folder, sample.stem
    paths = {
        "rgb": depths / f"{stem}.png",
        "depth": depths / f"{stem}_depth.npy",
        "mask": depths / f"{stem}_depth_mask.npy",
        "normal": Path("normals") / sample.folder / f"{stem}_normal.npy",
    }
    paths |= {f"label_{task}": Path("pseudo", task) / sample.folder / f"{stem}.png" for task in TASKS}
    if settings.truth:
        paths |= {f"truth_{task}": Path("truth", task) / sample.folder / f"{stem}_{task}.npy" for task in TRUTHS}
    return paths


def sample_arrays(settings: Settings, sample: Sample) -> dict[str, np.ndarray]:
    """Role -> content of each of the sample's files. Depth (H, W, 1) and normals (H, W, 3) are 0 where the mask is."""
    rendering = render_sample(settings, sample)
    seen = rendering.valid[..., None]
    normal = np.where(seen, rendering.normal, 0).astype(np.float32)
    if sample.index % 5 == 2:
        # Not all of DIODE's normals have unit length: readers must normalise.
        rng = np.random.default_rng([settings.seed, SPLITS.index(sample.split), sample.index, 1])
        normal *= rng.uniform(0.97, 1.03, seen.shape).astype(np.float32)
    arrays = {
        "rgb": rendering.rgb,
        "depth": np.where(seen, rendering.depth[..., None], 0).astype(np.float32),
        "mask": rendering.valid.astype(MASK_DTYPES[sample.index // 2 % len(MASK_DTYPES)]),
        "normal": normal,
    }
    arrays |= {f"label_{task}": label for task, label in encode_labels(rendering).items()}
    if settings.truth:
        arrays |= {f"truth_{task}": getattr(rendering, task) for task in TRUTHS}
    return arrays


def write_sample(root: Path, settings: Settings, sample: Sample) -> None:
    """Render one sample and write its files."""
    arrays = sample_arrays(settings, sample)
    for role, name in sample_paths(settings, sample).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            save_png(path, arrays[role])
        else:
            save_npy(path, arrays[role])


def meta_json(settings: Settings) -> dict:
    """meta[split][scene_type][scene][scan] = [stem, ...]"""
    meta: dict = {split: {} for split in SPLITS}
    for sample in list_samples(settings):
        scenes = meta[sample.split].setdefault(sample.scene_type, {})
        scenes.setdefault(sample.scene, {}).setdefault(sample.scan, []).append(sample.stem)
    return meta
