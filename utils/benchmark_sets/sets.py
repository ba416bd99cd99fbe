"""The table of test sets: where their files lie, what the numbers in them mean, how they are scored.

Layouts and protocols: DSINE (2403.00712, its `data/datasets`), Marigold (2312.02145, its `src/dataset` and
`script/*/eval.py`), IIW (Bell et al. 2014). A new set is one more record.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.benchmark_sets.files import File
from utils.errors import InputError, warn
from utils.evaluation.scoring import Truth, truth_of
from utils.image_io.colour_space import to_srgb
from utils.image_io.diode_names import SCENE_TYPES
from utils.image_io.files import Raw, read_mask, read_raw
from utils.image_io.opening import open_header
from utils.intrinsics import ALBEDO, DEPTH, NORMAL, SHADING, Intrinsic
from utils.kinds.base import Rules

TRUTH = "take the published files, as they were unpacked"


@dataclass(frozen=True)
class Item:
    """One image of a set. scene_type: DIODE's. others: further files that its truth needs, by role."""

    name: str
    image: File
    truth: File
    others: Mapping[str, File] = field(default_factory=dict)
    scene_type: str | None = None


@dataclass(frozen=True)
class BenchmarkSet:
    """One set and its protocol.

    family: of images, whatever is measured of them. source: whose protocol it is. count: of images, as published.
    files: pattern of the truth's name, with the groups root (what is before the set's own names) and others, by which
    image and others name the other files (several endings of one). stored: the truth's types of numbers, as numpy
    codes them. read: (numbers, mask or None) of an image. frame, units, space: as `Rules` has them. metres: between
    which the median of all true depths must be. share: of the truth's pixels that must be valid in the mean. every:
    which images count, sorted by number.
    """

    name: str
    family: str
    intrinsic: Intrinsic
    protocol: str
    source: str
    count: int
    files: str
    image: tuple[str, ...]
    stored: tuple[str, ...] = ("f2", "f4", "f8")
    read: Callable[[Item], tuple[Raw, np.ndarray | None]] = field(default=lambda item: (numbers(item.truth), None))
    others: Mapping[str, str] = field(default_factory=dict)
    frame: str = "opencv"
    units: float | None = None
    space: str = "srgb"
    metres: tuple[float, float] | None = None
    share: float = 0.2
    every: int = 1

    @property
    def judged(self) -> bool:
        """True where human judgements take the place of a true map."""
        return self.protocol == "whdr"

    @property
    def aggregation(self) -> str:
        """How the images of the set are added up, in words."""
        return "pixels pooled" if self.protocol == "pooled" else "mean of images"

    def rules(self, pred_frame: str = "opencv", align: str = "depth", pred_space: str | None = None) -> Rules:
        """How predictions of these conventions are scored on the set; pred_space None: the intrinsic's own coding."""
        space = pred_space or self.intrinsic.coding
        protocol = self.intrinsic.map_kind.protocols[0] if self.judged else self.protocol
        return Rules(self.intrinsic, protocol, pred_frame, self.frame, align, self.units, space, self.space)

    def find(self, files: Mapping[str, File]) -> list[Item]:
        """The set's images among `files`, sorted; [] where it is not there. InputError for two copies of it, and for
        a truth whose image or mask is missing.
        """
        pattern, missing = re.compile(self.files), []
        roots: defaultdict[str, list[Item]] = defaultdict(list)
        for name, truth in files.items():
            match = pattern.fullmatch(name)
            if match is None or match["root"].endswith("train/"):
                continue
            groups = match.groupdict()
            image = next((files[one] for t in self.image if (one := t.format(**groups)) in files), None)
            others = {role: files[one] for role, t in self.others.items() if (one := t.format(**groups)) in files}
            if image is None or len(others) < len(self.others):
                missing.append(name)
                continue
            scene = next((part for part in SCENE_TYPES if part in name.split("/")), None)
            own = image.name.removeprefix(match["root"])
            roots[match["root"]].append(Item(own, image, truth, others, scene))
        if len(roots) > 1:
            raise InputError(
                f"--data: {len(roots)} copies of {self.name} (below {', '.join(root or '.' for root in sorted(roots))}"
                "); name a folder that holds one of them"
            )
        found = next(iter(roots.values()), [])
        if missing and found and not self.judged:
            raise InputError(
                f"--data: {len(missing)} images of {self.name} lack a file, e.g. the image of {missing[0]}; {TRUTH}",
                missing,
            )
        if self.every > 1:
            found = sorted(found, key=lambda item: int(Path(item.name).stem))[:: self.every]
        return found

    def load(self, item: Item, rules: Rules) -> Truth | None:
        """The truth of one image; None where it has judgements. InputError and GroundTruthError name the file."""
        if self.judged:
            return None
        raw, inside = self.read(item)
        path, kind = item.truth.shown, raw.array.dtype.str[1:]
        if kind not in self.stored:
            raise InputError(f"{path}: holds {raw.array.dtype}, where {self.name} has {self.stored[0]}; {TRUTH}")
        return truth_of(rules.kind.truth_in(raw, path, inside, self.units), path, rules)


# Reading -------------------------------------------------------------------------------------------------------------


def numbers(file: File) -> Raw:
    """The numbers in a map's file as stored. InputError names it."""
    content = file.read()
    try:
        return read_raw(file.shown, content)
    except ValueError as error:
        raise InputError(f"{file.shown}: {error}; {TRUTH}") from None


def masked(item: Item) -> tuple[Raw, np.ndarray | None]:
    """Valid where the mask is not zero."""
    mask = item.others["mask"]
    try:
        return numbers(item.truth), read_mask(mask.shown, mask.read())
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{mask.shown}: {error}; {TRUTH}") from None


def long_enough(item: Item) -> tuple[Raw, np.ndarray | None]:
    """Valid where a float normal is longer than 0.5, as in DSINE's loaders of iBims-1 and Sintel."""
    raw = numbers(item.truth)
    squares = np.square(np.nan_to_num(raw.array).astype(np.float64))
    return raw, squares.sum(axis=-1) > 0.25


def headless(item: Item) -> tuple[Raw, np.ndarray | None]:
    """ETH3D's depth: float32 of the image's size, one after the other, without a header; inf where unknown."""
    with open_header(io.BytesIO(item.image.read())) as image:
        width, height = image.size
    content = item.truth.read()
    if len(content) != 4 * width * height:
        raise InputError(
            f"{item.truth.shown}: {len(content)} bytes are not {height}x{width} floats, its image's size; {TRUTH}"
        )
    return Raw(np.frombuffer(content, "<f4").reshape(height, width), {}), None


def coded(item: Item) -> tuple[Raw, np.ndarray | None]:
    """Linear albedo, sRGB-coded: the space it is scored in."""
    raw = numbers(item.truth)
    return raw._replace(array=to_srgb(raw.array.clip(0, 1).astype(np.float64))), None


def clipped(item: Item) -> tuple[Raw, np.ndarray | None]:
    """Shading, clipped at and divided by the larger of its own and the residual's 98th percentile, as Marigold's."""
    raw, residual = numbers(item.truth), numbers(item.others["residual"]).array
    shading = raw.array.astype(np.float64)
    top = max(float(np.percentile(shading, 98)), float(np.percentile(residual.astype(np.float64), 98)), 1e-6)
    return raw._replace(array=np.clip(shading, 0, top) / top), None


# The table -----------------------------------------------------------------------------------------------------------

DSINE, MARIGOLD = "DSINE", "Marigold"  # 2403.00712, 2312.02145


def _dsine(
    folder: str, count: int, stem: str, ending: str, stored: tuple[str, ...] = ("u1",), **more: Any
) -> BenchmarkSet:
    files = rf"(?P<root>(?:.*/)?{folder}/)(?P<stem>{stem})_normal\.{ending}"
    image = ("{root}{stem}_img.png", "{root}{stem}_img.jpg")
    name = f"dsine-{folder}"
    return BenchmarkSet(name, folder, NORMAL, "pooled", DSINE, count, files, image, stored, frame="dsine", **more)


def _marigold_normals(folder: str, count: int, below: str = "") -> BenchmarkSet:
    files = rf"(?P<root>(?:.*/)?{folder}(?:[^/]*\.tar)?/(?:.*\.tar/)?)(?P<stem>{below}.+)_normal\.npy"
    image = ("{root}{stem}_img.png", "{root}{stem}_img.jpg")
    name = f"marigold-{folder}-normal"
    return BenchmarkSet(name, folder, NORMAL, "per_image", MARIGOLD, count, files, image, frame="opengl")


def _depth(family: str, count: int, files: str, image: str, **more: Any) -> BenchmarkSet:
    files = f"(?P<root>(?:.*/)?){files}"
    return BenchmarkSet(f"{family}-depth", family, DEPTH, family, MARIGOLD, count, files, ("{root}" + image,), **more)


MM = {"stored": ("u2",), "units": 1000.0, "metres": (0.5, 8.0)}
DIODE = r"(?P<stem>(?:val/)?(?:indoors|outdoor)/scene_\d{5}/scan_\d{5}/[^/]+)"
HYPERSIM = r"(?P<root>(?:.*/)?)(?P<stem>test/ai_\d{3}_\d{3}/)"
SETS = (
    _dsine("nyuv2", 654, "test/[^/]+", "png"),
    _dsine("scannet", 300, "scene[^/]+/[^/]+", "png"),
    _dsine("ibims", 100, ".+", "exr", ("f4", "f2"), read=long_enough),
    _dsine("sintel", 1064, ".+", "exr", ("f4", "f2"), read=long_enough),
    _dsine("vkitti", 1000, ".+", "png", ("u2",)),
    _marigold_normals("nyuv2", 654, "test/"),
    _marigold_normals("scannet", 300),
    _marigold_normals("ibims", 100),
    _marigold_normals("diode", 771, "(?:val/)?"),
    _marigold_normals("oasis", 10_000),
    BenchmarkSet("diode-normal", "diode", NORMAL, "per_image", MARIGOLD, 771,
            rf"(?P<root>(?:.*/)?)normals/{DIODE}_normal\.npy", ("{root}depths/{stem}.png",), frame="opengl"),
    _depth("nyuv2", 654, r"(?P<stem>test/[^/]+/)depth_(?P<id>\d+)\.png", "{stem}rgb_{id}.png", **MM),
    _depth("kitti", 652, r"(?P<stem>(?P<day>\d{4}_\d\d_\d\d)_drive_\d+_sync)/proj_depth/groundtruth/image_02/"
           r"(?P<id>\d+)\.png", "{day}/{stem}/image_02/data/{id}.png",
           stored=("u2",), units=256.0, metres=(3.0, 60.0), share=0.01),
    _depth("eth3d", 454, r"depth/(?P<scene>[^/]+)_dslr_depth/(?P=scene)/ground_truth_depth/dslr_images/"
           r"(?P<id>[^/]+)\.JPG", "rgb/{scene}/images/dslr_images/{id}.JPG",
           read=headless, stored=("f4",), metres=(0.5, 60.0), share=0.1),
    _depth("scannet", 800, r"(?P<stem>scene\d{4}_\d\d)/depth/(?P<id>[^/]+)\.png", "{stem}/color/{id}.jpg", **MM),
    _depth("diode", 771, rf"{DIODE}_depth\.npy", "{stem}.png",
           read=masked, others={"mask": "{root}{stem}_depth_mask.npy"}, metres=(0.5, 100.0)),
    BenchmarkSet("hypersim-albedo", "hypersim", ALBEDO, "as_is", MARIGOLD, 5237,
            rf"{HYPERSIM}albedo_(?P<id>cam_\d+_fr\d+)\.npy", ("{root}{stem}rgb_{id}.png",), ("f8", "f4", "f2"),
            read=coded),
    BenchmarkSet("hypersim-shading", "hypersim", SHADING, "tone_mapped", MARIGOLD, 5237,
            rf"{HYPERSIM}shading_(?P<id>cam_\d+_fr\d+)\.npy", ("{root}{stem}rgb_{id}.png",), ("f8", "f4", "f2"),
            read=clipped, others={"residual": "{root}{stem}residual_{id}.npy"}, space="linear"),
    BenchmarkSet("interiorverse-albedo", "interiorverse", ALBEDO, "as_is", MARIGOLD, 2672,
            r"(?P<root>(?:.*/)?)(?P<stem>[^/]+/\d+)_albedo\.exr", ("{root}{stem}_im.exr",), ("f4", "f2"),
            read=masked, others={"mask": "{root}{stem}_mask.exr"}),
    BenchmarkSet("iiw-albedo", "iiw", ALBEDO, "whdr", "IIW, threshold 0.10", 1046,
            r"(?P<root>(?:.*/)?)(?P<id>\d+)\.json", ("{root}{id}.png",), every=5),
)  # fmt: skip
PICKLES = r"(?:.*/)?oasis/.*\.pkl"  # DSINE's files of OASIS


def find_sets(files: Mapping[str, File], wanted: Sequence[str] = ()) -> dict[str, list[Item]]:
    """Name -> images of every set among `files`, of those `wanted` if any are. InputError if no set is left."""
    names = [one.name for one in SETS]
    if unknown := [name for name in wanted if name not in names]:
        raise InputError(f"--sets {' '.join(unknown)}: no such set; choose from {', '.join(names)}")
    here = {one.name: one.find(files) for one in SETS if not wanted or one.name in wanted}
    found = {name: items for name, items in here.items() if items}
    if absent := [name for name in wanted if name not in found]:
        pickles = any(re.fullmatch(PICKLES, name) for name in files) and "marigold-oasis-normal" in absent
        cure = "OASIS is there as pickles, which would run code: export it as Marigold's .npy" if pickles else ""
        raise InputError(f"--sets {' '.join(absent)}: not below --data; {cure or 'leave it out, or name its folder'}")
    if not found:
        raise InputError(
            f"--data: none of {len(SETS)} sets is there, under the names they have once unpacked ({len(files)} files "
            "looked at); name the folder above dsine_eval, nyuv2, kitti, ..."
        )
    if not wanted and any(re.fullmatch(PICKLES, name) for name in files):
        warn("oasis: its pickles would run code and are not read; Marigold's export of it (.npy) is")
    return found
