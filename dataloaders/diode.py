"""DIODE (arXiv 1908.00463) with pseudo labels, decoded the way the released Intrinsic LoRA code trains on it.

    <root>/diode_meta.json                                              [split][scene type][scene][scan] -> stems
    <root>/depths/<split>/<indoors|outdoor>/scene_X/scan_Y/<stem>.png, <stem>_depth.npy, <stem>_depth_mask.npy
    <root>/normals/<same tree>/<stem>_normal.npy
    <root>/<any folder>/<same tree>/<stem>_<intrinsic>.npy              linear albedo, shading, ... DIODE has none
    <pseudo_root>/<same tree>/<stem>.png                                8-bit labels, the training target

Ground truth is never a target: it is read for validation only. DIODE does not measure albedo or shading: where no
folder of measured values is given, the label replaces them, and the name of every score shows it.
"""

import os
from pathlib import Path

import numpy as np

from dataloaders.base import Maps, fixed_samples
from utils.errors import InputError
from utils.image_io.diode_names import (
    KNOWN_GAP,
    SCENE_TYPES,
    check_label_root,
    check_trees,
    lacks_known_gap,
    listed_samples,
)
from utils.intrinsics import Intrinsic
from utils.kinds.base import Score, score_of
from utils.kinds.depth import read_diode_mask


class Diode(Maps):
    """RGB, pseudo label and ground truth of one DIODE split.

    Items are those of `Maps`, named <split>/<scene type>/<scene>/<scan>/<stem>. gt: `MapKind.read_diode`.

    Args:
        root: the folder that holds the ground truth: DIODE's `normals/` or `depths/`, or one of the same tree next
            to `depths/` or one deeper. For a colour also `depths/` itself: then nothing is measured (`measured`).
        pseudo_root: root of the labels' tree.
        split: "train" or "val".
        scene_types: out of "indoors", "outdoor".
        resolution: R, pixels.
        center_crop: or a window drawn at random from (seed, index, epoch), the same for all maps of the sample.
        num_images: a subset of this size drawn by `seed`; all if None. `first`: then only the first `first`.
        list_from: "meta" (diode_meta.json) or "disk" (every RGB file).
        skip_missing: leave out samples without label or ground truth instead of failing.
        masked: items have a mask: where there is truth or, if nothing is measured, `<stem>_depth_mask.npy`.
        whole: images are not cropped; `resolution` is their short side.

    Raises:
        InputError: nothing to read, or samples lack label or ground truth (count and three names in the message).
    """

    def __init__(
        self,
        intrinsic: Intrinsic,
        root: str | Path,
        pseudo_root: str | Path,
        split: str,
        scene_types: tuple[str, ...] = SCENE_TYPES,
        resolution: int = 512,
        center_crop: bool = True,
        seed: int = 0,
        num_images: int | None = None,
        first: int | None = None,
        list_from: str = "meta",
        skip_missing: bool = False,
        masked: bool = False,
        whole: bool = False,
    ):
        self.root, self.pseudo_root = Path(root), Path(pseudo_root)
        above = self.root.parent  # DIODE's root, or one folder below it (truth/albedo)
        self.diode = above.parent if (above.parent / "depths").is_dir() and not (above / "depths").is_dir() else above
        self.rgb_root = self.diode / "depths"
        super().__init__(intrinsic, resolution, center_crop, seed, masked, whole)
        self.list_from, self.skip_missing = list_from, skip_missing
        self.keep(self._check(self._list(split, scene_types)), num_images, first)
        if not self.measured:
            self.notes.append(
                f"DIODE measures no {intrinsic.name}: val/<split>/label_* compare predictions with PSEUDO LABELS, not "
                f"with ground truth (--train_data_dir=<folder of *{intrinsic.suffix}> would)"
            )

    @property
    def measured(self) -> bool:
        return self.intrinsic.map_kind.in_diode or self.root.resolve() != self.rgb_root.resolve()

    @property
    def score(self) -> Score:
        """Depth by DIODE's own range."""
        return score_of(self.intrinsic, "diode") if self.measured else super().score

    def ground_truth(self, stem: str) -> tuple[np.ndarray, np.ndarray]:
        return self.intrinsic.map_kind.read_diode(self.root / f"{stem}{self.intrinsic.suffix}")

    def known(self, stem: str) -> np.ndarray:
        return self.intrinsic.map_kind.known_in_diode(self.root / f"{stem}{self.intrinsic.suffix}")

    def mask(self, stem: str) -> np.ndarray | None:
        """DIODE's own mask, where a colour is not measured: sky and glass have no depth."""
        return None if self.measured else read_diode_mask(self.mask_paths(stem)[0])

    @property
    def trained_on(self) -> str:
        name = "miniworld" if (self.diode / "miniworld.json").is_file() else "diode"
        return f"{name} {self.stems[0].split('/')[0]}"

    def mask_paths(self, stem: str) -> list[Path]:
        if not self.measured:
            return [self.rgb_root / f"{stem}_depth_mask.npy"]
        mask = self.intrinsic.map_kind.diode_mask
        return [Path(self.truth_name(stem)), *([self.root / f"{stem}{mask}"] if mask else [])]

    def rgb_path(self, stem: str) -> Path:
        return self.rgb_root / f"{stem}.png"

    def label_path(self, stem: str) -> Path:
        return self.pseudo_root / f"{stem}.png"

    def truth_name(self, stem: str) -> str:
        return f"{self.root / stem}{self.intrinsic.suffix}"

    def _list(self, split: str, scene_types: tuple[str, ...]) -> list[str]:
        """Names of the split's samples, in a fixed order."""
        unknown = [name for name in scene_types if name not in SCENE_TYPES]
        if unknown or not scene_types:
            raise InputError(f"--scene_types: {unknown or 'nothing'} is not out of {', '.join(SCENE_TYPES)}")
        check_trees(self.root, self.pseudo_root)
        check_label_root(self.pseudo_root, [self.intrinsic.name])
        if os.path.isdir(self.root / "depths"):  # False too for a folder that may not be looked into
            inside = [name for name in (self.intrinsic.truth_folder, "depths") if os.path.isdir(self.root / name)]
            raise InputError(f"--train_data_dir={self.root}: this is DIODE's root; pass {self.root / inside[0]}")
        if not os.path.isdir(self.rgb_root):
            raise InputError(f"{self.rgb_root}: no such folder; DIODE's images are read from depths/ next to normals/")
        on_disk = [
            f"{path}/{name[:-4]}"
            for scene_type in scene_types
            for path, names in _tree(self.rgb_root, f"{split}/{scene_type}").items()
            for name in names
            if name.endswith(".png")
        ]
        if self.list_from == "disk":
            return sorted(on_disk)
        every = listed_samples(self.diode)
        listed = [stem for kind in scene_types for stem in every if stem.startswith(f"{split}/{kind}/")]
        for scene_type in scene_types:
            if not any(stem.startswith(f"{split}/{scene_type}/") for stem in listed):
                self.notes.append(f"{split}: diode_meta.json lists no {scene_type} images")
        extra = len(set(on_disk) - set(listed))
        if extra:
            self.notes.append(
                f"{split}: {extra} images on disk are not in diode_meta.json ({len(listed)} are); "
                "--list_from disk uses them too"
            )
        return sorted(listed)

    def _check(self, stems: list[str]) -> list[str]:
        """Every sample must have its image, label and ground truth. Reads one directory listing per scan."""
        missing: dict[str, list[str]] = {}
        for root, suffix in self._needed():
            seen: dict[str, set[str]] = {}
            for stem in stems:
                scan, name = stem.rsplit("/", 1)
                if scan not in seen:
                    seen[scan] = _names(f"{root}/{scan}")
                if name + suffix not in seen[scan]:
                    missing.setdefault(f"{root}/.../*{suffix}", []).append(stem)
        if gap := self._known_gap(missing):
            stems = [stem for stem in stems if stem not in gap]
            self.notes.append(f"left out {len(gap)} images of {KNOWN_GAP}: DIODE has no normals for that scan")
        lost = set().union(*missing.values()) if missing else set()
        if stems and len(lost) == len(stems) and not self.skip_missing:
            pattern, names = next(iter(missing.items()))
            raise InputError(self._no_file(pattern, names))
        if lost and not self.skip_missing:
            each = "; ".join(
                f"{len(names)} x {pattern} (e.g. {', '.join(names[:3])})" for pattern, names in missing.items()
            )
            raise InputError(
                f"{len(lost)} of {len(stems)} samples lack a file: {each}; --skip_missing leaves them out"
            )
        if lost:
            self.notes.append(f"left out {len(lost)} of {len(stems)} samples that lack a file (--skip_missing)")
        return [stem for stem in stems if stem not in lost]

    def _known_gap(self, missing: dict[str, list[str]]) -> set[str]:
        """The samples of the one scan that DIODE itself has no normals for; taken out of `missing`.

        Only if nothing but its normals is missing, and of all of it: anything else is a damaged copy.
        """
        pattern = f"{self.root}/.../*{self.intrinsic.suffix}"
        lost = missing.get(pattern, [])
        gap = {stem for stem in lost if stem.startswith(KNOWN_GAP + "/")}
        if not self.intrinsic.map_kind.diode_gap or not gap or not lacks_known_gap(self.root):
            return set()
        missing[pattern] = [stem for stem in lost if stem not in gap]
        if not missing[pattern]:
            del missing[pattern]
        return gap

    def _needed(self) -> list[tuple[Path, str]]:
        """(root, suffix) of each file that a sample is made of."""
        needed = [(self.rgb_root, ".png"), (self.pseudo_root, ".png")]
        needed += [(self.root, self.intrinsic.suffix)] if self.measured else []
        mask = self.intrinsic.map_kind.diode_mask
        needed += [(self.root, mask)] if mask else []
        return needed + ([(self.rgb_root, "_depth_mask.npy")] if self.masked and not self.measured else [])

    def _no_file(self, pattern: str, stems: list[str]) -> str:
        advice = "is --pseudo_root the folder that holds train/ and val/?"
        if pattern.endswith("_depth_mask.npy") and self.masked:
            advice = "--masked_loss needs masks or ground truth; leave it out"
        if pattern.endswith(self.intrinsic.suffix):
            advice = f"is --train_data_dir DIODE's {self.intrinsic.truth_folder}/ folder?"
        return f"no {pattern} for any of {len(stems)} samples (e.g. {', '.join(stems[:3])}): {advice}"


def validation_sets(train: Diode) -> dict[str, list[dict]]:
    """Four fixed samples each of the training images and of DIODE's indoor and outdoor validation images.

    Returns "train", "indoors", "outdoor" -> items; the same ones for a given seed in every run. A scene type that is
    not on disk is left out, with a line in `train.notes`.
    """
    sets = {"train": train}
    for scene_type in SCENE_TYPES:
        if not (train.rgb_root / "val" / scene_type).is_dir():
            train.notes.append(f"validation: no {scene_type} images under {train.rgb_root / 'val'}, so no panel")
            continue
        sets[scene_type] = Diode(
            train.intrinsic, train.root, train.pseudo_root, "val", (scene_type,), train.resolution, seed=train.seed,
            list_from=train.list_from, skip_missing=train.skip_missing, whole=train.whole,
        )  # fmt: skip
    return {name: fixed_samples(dataset, train.seed) for name, dataset in sets.items() if len(dataset)}


def _names(folder: str) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)} if os.path.isdir(folder) else set()
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None


def _tree(root: Path, folder: str) -> dict[str, list[str]]:
    """File names of every folder below root/folder, keyed by the folder's path relative to root."""
    start = len(f"{root}/")
    return {path[start:].replace(os.sep, "/"): names for path, _, names in os.walk(f"{root}/{folder}")}


if __name__ == "__main__":
    from dataloaders.__main__ import main
    from utils.errors import run

    run(main)
