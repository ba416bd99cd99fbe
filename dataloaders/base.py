"""The base of all data sets of intrinsic maps: from files to items for training and validation."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from utils.errors import InputError
from utils.image_io.images import Crop, read_label, read_rgb, same_aspect, size_of, whole_size
from utils.image_io.opening import check_ratio
from utils.intrinsics import Intrinsic
from utils.kinds.base import Known, Score, against_label, label_as_truth, score_of, shares
from utils.training.data import Part

INSPECTED = 16  # labels, for the share of unknown pixels
FIXED = 4  # images of a split that every validation predicts
PROBES = 8  # images and labels whose content goes into a fingerprint


class Maps(Dataset):
    """Images, labels and ground truth by name; a subclass defines their files and reads the truth.

    Item `index`, or `(index, epoch)` where a new random crop is wanted each epoch, is a dict with
        rgb, target  float32 (3,R,R) in [-1,1]: the image and its pseudo label
        stem         str, the sample's name
        mask         bool (1,R,R), only where `masked`: the pixels that count in the loss
        gt           float32 (C,R,R), measured values in the subclass's unit, arbitrary where not valid
        valid        bool (1,R,R), where gt is measured

    R,R is the image's own shape, `shapes[index]`, where it is not cropped (whole).

    Where `measured` is False the label replaces the ground truth (`label_as_truth`). gt and valid are for validation:
    set `with_truth` to False for training, whose items are then made without reading a file of truth, except for a
    mask that it defines.
    """

    def __init__(
        self,
        intrinsic: Intrinsic,
        resolution: int,
        center_crop: bool,
        seed: int,
        masked: bool = False,
        whole: bool = False,
    ):
        self.intrinsic, self.masked, self.whole = intrinsic, masked, whole
        self.resolution, self.center_crop, self.seed = resolution, center_crop, seed
        self.with_truth = True
        self.stems: list[str] = []
        self.notes: list[str] = []
        self.parts: Sequence[Part] = ()

    def rgb_path(self, stem: str) -> Path:
        raise NotImplementedError

    def label_path(self, stem: str) -> Path:
        raise NotImplementedError

    def ground_truth(self, stem: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Measured values (H,W,C) and where they are valid, bool (H,W); None if this sample has none."""
        raise NotImplementedError

    def known(self, stem: str) -> np.ndarray | None:
        """Where `ground_truth` is valid, bool (H,W), for a subclass that need not decode its values for that."""
        found = self.ground_truth(stem)
        return None if found is None else found[1]

    def mask(self, stem: str) -> np.ndarray | None:
        """The valid pixels of a sample without truth, bool (H,W); None if the truth defines them."""
        raise NotImplementedError

    def mask_paths(self, stem: str) -> list[Path]:
        """The files that define which of a sample's pixels are valid."""
        raise NotImplementedError

    @property
    def measured(self) -> bool:
        """True if gt is ground truth, False if it is the label."""
        return True

    @property
    def score(self) -> Score:
        """The score of a prediction: against ground truth or, where nothing is measured, against the label."""
        score = score_of(self.intrinsic)
        return score if self.measured else against_label(score)

    @property
    def reference(self) -> str:
        """The reference of the validation, for the checkpoint's metadata."""
        return "ground truth" if self.measured else "pseudo label"

    @property
    def trained_on(self) -> str:
        """The published sets that the images are of; see `TrainingSet`."""
        return ""

    def __len__(self) -> int:
        return len(self.stems)

    def keep(self, stems: list[str], num_images: int | None, first: int | None) -> None:
        """Hold these samples; `num_images`: a subset of this size drawn by the seed; then only the first `first`."""
        if num_images is not None and num_images < len(stems):
            chosen = np.random.default_rng([self.seed, len(stems)]).choice(len(stems), num_images, replace=False)
            stems = [stems[i] for i in sorted(chosen)]
        self.stems = stems[:first]

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Height and width of every item; for whole images from the files' headers."""
        if not self.whole:
            return [(self.resolution, self.resolution)] * len(self)
        return [self._whole_size(self.rgb_path(stem)) for stem in self.stems]

    def _whole_size(self, path: Path) -> tuple[int, int]:
        width, height = size_of(path)
        try:
            check_ratio(width, height, "crop image and label, or pass --crop square")
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return whole_size(width, height, self.resolution)

    @property
    def fingerprint(self) -> str:
        """Identifies the samples, their order and crop, and the content of 8 of their images, labels and masks (other
        labels have the same names), but not their place on disk.
        """
        crop = "none" if self.whole else str(self.center_crop)
        digest = hashlib.sha256("\n".join([*self.stems, crop]).encode(errors="surrogateescape"))
        for stem in self.stems[:: -(-len(self) // PROBES) or 1]:
            for path in (self.rgb_path(stem), self.label_path(stem), *(self.mask_paths(stem) if self.masked else ())):
                try:
                    digest.update(path.read_bytes())
                except OSError as error:
                    raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        return f"{len(self)} images {digest.hexdigest()[:12]}"

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        stem = self.stems[index]
        rgb, label = read_rgb(self.rgb_path(stem)), read_label(self.label_path(stem))
        self._check_frame(self.label_path(stem), label.size, rgb.size)
        crop = self._crop(rgb.size, index, epoch)
        label_crop = crop if same_aspect(label.size, rgb.size) else Crop.of(*label.size, self.resolution)
        item = {"rgb": crop.picture(rgb), "target": label_crop.picture(label), "stem": stem}
        if self.masked or (self.with_truth and not self.measured):
            reached = label_crop.reached(~label_known(self.intrinsic, label).pixels)
            known = torch.from_numpy(~reached)[None]  # no pixel that the resize has mixed with an unknown one
        if self.masked:
            item["mask"] = self._mask(stem, rgb.size, crop) & known
        if self.with_truth and self.measured:
            item["gt"], item["valid"] = self._truth(stem, rgb.size, crop)
        elif self.with_truth:
            item["gt"], item["valid"] = label_as_truth(self.intrinsic, item["target"], known)
        return item

    def _crop(self, size: tuple[int, int], index: int, epoch: int) -> Crop:
        if self.whole:
            return Crop.whole(*size, self.resolution)
        rng = None if self.center_crop else np.random.default_rng([self.seed, index, epoch])
        return Crop.of(*size, self.resolution, rng)

    def _mask(self, stem: str, size: tuple[int, int], crop: Crop) -> Tensor:
        """The pixels that count in the loss, bool (1,R,R): those with truth, or those of the sample's own mask."""
        if (mask := self.mask(stem)) is not None:
            _check_size(str(self.mask_paths(stem)[0]), "a {} mask", mask, size)
        elif (mask := self.known(stem)) is not None:
            _check_size(self.truth_name(stem), "{} ground truth", mask, size)
        else:
            return torch.zeros(1, *crop.window, dtype=torch.bool)
        return torch.from_numpy(crop.array(mask))[None]

    def _truth(self, stem: str, size: tuple[int, int], crop: Crop) -> tuple[Tensor, Tensor]:
        """gt float32 (C,R,R) and valid (1,R,R) of an image of `size` (width, height)."""
        found = self.ground_truth(stem)
        if found is None:
            blank = torch.zeros(self.intrinsic.map_kind.truth_channels, *crop.window)
            return blank, torch.zeros_like(blank[:1], dtype=torch.bool)
        gt, valid = found
        _check_size(self.truth_name(stem), "{} ground truth", gt, size)
        values = torch.from_numpy(crop.array(gt).astype(np.float32)).permute(2, 0, 1).contiguous()
        return values, torch.from_numpy(crop.array(valid))[None]

    def truth_name(self, stem: str) -> str:
        """The file of a sample's truth, for messages."""
        raise NotImplementedError

    def _check_frame(self, path: Path, label: tuple[int, int], rgb: tuple[int, int]) -> None:
        """A label covers the whole image or, if it is square (as Omnidata's are), the image's centre square."""
        if same_aspect(label, rgb) or (label[0] == label[1] and self.center_crop and not self.whole):
            return
        flags = "--crop square and --center_crop" if self.whole else "--center_crop"
        advice = f"labels of centre squares need {flags}" if label[0] == label[1] else "make the label again"
        raise InputError(f"{path}: a {label[0]}x{label[1]} label does not cover a {rgb[0]}x{rgb[1]} image; {advice}")


def _check_size(name: str, what: str, values: np.ndarray, size: tuple[int, int]) -> None:
    """InputError where values (H,W,...) have another size than their image, (width, height). what: with a {}."""
    if (values.shape[1], values.shape[0]) != size:
        found = what.format(f"{values.shape[1]}x{values.shape[0]}")
        raise InputError(f"{name}: {found} for a {size[0]}x{size[1]} image")


def label_known(intrinsic: Intrinsic, label: Image.Image) -> Known:
    """The pixels of an 8-bit label, from `read_label`, that have a value, (H,W): in depth and colour all of them."""
    return intrinsic.map_kind.known_pixels(np.asarray(label), prediction=True, about=label.info)


def unknown_labels(dataset: Maps) -> str | None:
    """One line: the share of unknown pixels in up to INSPECTED labels that the seed chooses; None if all are known."""
    if not dataset.intrinsic.map_kind.labels_have_gaps:
        return None
    unknown: Counter[str] = Counter()
    pixels = 0
    chosen = np.random.default_rng([dataset.seed, len(dataset)]).permutation(len(dataset))[:INSPECTED]
    for index in chosen:
        label = read_label(dataset.label_path(dataset.stems[int(index)]))
        unknown.update(label_known(dataset.intrinsic, label).unknown)
        pixels += label.width * label.height
    text = shares(unknown, pixels, f"the pixels of {len(chosen)} labels")
    unmasked = "the loss takes them for directions, --masked_loss leaves them out"
    return text and f"{text}; {'--masked_loss leaves them out' if dataset.masked else unmasked}"


def fixed_samples(dataset: Maps, seed: int) -> list[dict]:
    """FIXED items (fewer if there are fewer) chosen by `seed` alone."""
    chosen = np.random.default_rng([seed, len(dataset)]).permutation(len(dataset))[:FIXED]
    return [dataset[int(index)] for index in sorted(chosen)]
