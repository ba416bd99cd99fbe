"""Pictures that a GAN makes and another network labels: the training set of a GAN's LoRA."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from utils.generators.stylegan2 import StyleGAN2
from utils.intrinsics import Intrinsic
from utils.kinds.base import Score, against_label, label_as_truth, score_of
from utils.labels.encoding import encode
from utils.noise import generators

FAR = 4.0  # relative depth, for scores: nearest 1, farthest 4
Label = Callable[[Image.Image], np.ndarray]  # an RGB picture -> values as `utils.labels.teachers.Teacher` gives them


class Generated(Dataset):
    """Pictures G(w) of `count` random z and their labels, kept as 8-bit in memory; see `TrainingSet`.

    Item `index`, or `(index, epoch)`: rgb, target float32 (3,S,S) in [-1,1]; w (D,); gt, valid: the label as scores
    read it; stem. z is a function of (seed, number) alone. quantity: what `label` gives. reader: whose w, of the same
    z, an item has; default: `gan`'s own.
    """

    masked, whole, center_crop, measured, reference = False, False, True, False, "label of another network"

    def __init__(
        self,
        intrinsic: Intrinsic,
        gan: StyleGAN2,
        label: Label,
        quantity: str,
        count: int,
        seed: int,
        reader: StyleGAN2 | None = None,
    ):
        self.intrinsic, self.resolution = intrinsic, gan.size
        self.notes: list[str] = []
        self.stems = [f"seed{seed}-{number:06d}" for number in range(count)]
        rgb, targets, points = [], [], []
        for number in tqdm(range(count), desc=f"labelling {count} generated pictures", unit="image", leave=False):
            w, picture = generate(gan, seed, number, reader or gan)
            rgb.append(picture)
            targets.append(encode(quantity, label(Image.fromarray(picture))))
            points.append(w)
        self.rgb, self.targets, self.w = np.stack(rgb), np.stack(targets), torch.stack(points)
        content = self.rgb.tobytes() + self.targets.tobytes()
        self.fingerprint = f"{count} generated images {hashlib.sha256(content).hexdigest()[:12]}"

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index = key[0] if isinstance(key, tuple) else key
        rgb, target = to_tensor(self.rgb[index]), to_tensor(self.targets[index])
        gt, valid = label_truth(self.intrinsic, target)
        return {"rgb": rgb, "target": target, "w": self.w[index], "gt": gt, "valid": valid, "stem": self.stems[index]}

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [(self.resolution, self.resolution)] * len(self)

    @property
    def score(self) -> Score:
        return against_label(score_of(self.intrinsic))

    def rgb_path(self, stem: str) -> Path:
        raise FileNotFoundError(f"{stem} is made, not read")

    label_path = rgb_path

    def mask_paths(self, stem: str) -> list[Path]:
        return []


@torch.no_grad()
def generate(gan: StyleGAN2, seed: int, number: int, reader: StyleGAN2) -> tuple[Tensor, np.ndarray]:
    """`reader`'s w (D,) of the picture of this number, and the picture G(w), (S,S,3) uint8."""
    device = next(gan.parameters()).device
    z = torch.randn(1, gan.style_dim, generator=generators(seed, number, 1)[0]).to(device)
    pixels = (gan(gan.mapping(z))[0].clamp(-1, 1) + 1) * 127.5
    return reader.mapping(z)[0].cpu(), pixels.round().byte().permute(1, 2, 0).cpu().numpy()


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(S,S,3) uint8 -> (3,S,S) in [-1,1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def label_truth(intrinsic: Intrinsic, target: Tensor) -> tuple[Tensor, Tensor]:
    """A label (3,S,S) as gt and where it is valid: `label_as_truth`, and of depth a relative one (1,S,S), 1 to FAR."""
    gt, valid = label_as_truth(intrinsic, target)
    if intrinsic.map_kind.label_is_truth:
        return gt, valid
    return FAR - (FAR - 1) * (target[:1] / 2 + 0.5), torch.ones_like(valid)
