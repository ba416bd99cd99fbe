"""A GAN that makes the map instead of the image: G(w) is the image; G'(w), with the LoRA, is its map.

The paper (arXiv 2311.17137, section 3) describes a LoRA on the affine layers of StyleGAN, trained on generated images
that other networks have labelled. It does not give loss, rank or number of samples. The loss here is the mean squared
error of pixels.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from generators.stylegan2 import StyleGAN2
from utils.intrinsics import Intrinsic
from utils.kinds.base import Score, against_label, label_as_truth, score_of
from utils.labels.encoding import encode
from utils.labels.teachers import Teacher
from utils.noise import generators
from utils.system.processes import shared_out
from utils.training.data import Part

FAR = 4.0  # the farthest relative depth in scores; the nearest is 1


@dataclass
class PixelPrediction:
    """w -> map, by the generator's own layers: G'(w), with the generator's own noise images.

    own: digest of an image -> its w. A GAN has no image input, so `predict` knows only these images.
    """

    own: Mapping[str, Tensor] = field(default_factory=dict)
    vae: nn.Module = field(default_factory=nn.Identity)  # nothing is encoded

    @property
    def metadata(self) -> dict[str, object]:
        return {"method": "gan"}

    def loss(self, network: nn.Module, batch: dict[str, Tensor], noise: list[Generator]) -> Tensor:
        """mse(G'(w), target), a scalar; w (B,D), target (B,3,S,S) in [-1,1]. `noise` is not used."""
        return F.mse_loss(network(batch["w"]).float(), batch["target"])

    def predict(self, network: nn.Module, rgb: Tensor, noise: list[Generator] | None = None) -> Tensor:
        """Generated images (B,3,S,S) -> maps (B,3,S,S) about [-1,1], not clamped. `noise` is not used."""
        return network(torch.stack([self.own[digest(image)] for image in rgb]).to(rgb.device))


def digest(rgb: Tensor) -> str:
    """A key for an image (3,S,S)."""
    return hashlib.sha256(rgb.cpu().numpy().tobytes()).hexdigest()


class Generated(Dataset):
    """Images G(w) of `count` random z with their labels, kept in memory in 8 bits; see `TrainingSet`.

    Item `index`, or `(index, epoch)`: rgb, target float32 (3,S,S) in [-1,1]; w (D,); gt, valid: the label as ground
    truth for the scores, where `with_truth`, as in `dataloaders.base.Maps`; stem. z is a function of (seed, number)
    alone.
    reader: the generator whose w, of the same z, an item has (default: `gan` itself).
    """

    masked, whole, center_crop, measured, reference = False, False, True, False, "label of another network"
    trained_on = ""

    def __init__(
        self,
        intrinsic: Intrinsic,
        gan: StyleGAN2,
        teacher: Teacher,
        count: int,
        seed: int,
        reader: StyleGAN2 | None = None,
    ):
        self.intrinsic, self.resolution, self.with_truth = intrinsic, gan.size, True
        self.notes: list[str] = []
        self.parts: Sequence[Part] = ()
        self.stems = [f"seed{seed}-{number:06d}" for number in range(count)]
        bar = tqdm(total=count, desc=f"labelling {count} generated images", unit="image", leave=False)

        def labelled(number: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
            w, pixels = generate(gan, seed, number, reader or gan)
            label = teacher.predict(Image.fromarray(pixels), generators(seed, number, 1))
            bar.update(PartialState().num_processes)
            return pixels, encode(teacher.quantity, label), w

        rgb, targets, points = zip(*shared_out(count, labelled))
        bar.close()
        self.rgb, self.targets, self.w = np.stack(rgb), np.stack(targets), torch.stack(points)
        self.fingerprint = f"{count} generated images {recipe(gan, reader or gan, seed, teacher)}"

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index = key[0] if isinstance(key, tuple) else key
        rgb, target = to_tensor(self.rgb[index]), to_tensor(self.targets[index])
        item = {"rgb": rgb, "target": target, "w": self.w[index], "stem": self.stems[index]}
        if self.with_truth:
            item["gt"], item["valid"] = label_truth(self.intrinsic, target)
        return item

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [(self.resolution, self.resolution)] * len(self)

    @property
    def score(self) -> Score:
        return against_label(score_of(self.intrinsic))

    def rgb_path(self, stem: str) -> Path:
        raise FileNotFoundError(f"{stem} is generated, not read from a file")

    label_path = rgb_path

    def mask_paths(self, stem: str) -> list[Path]:
        return []


def recipe(gan: StyleGAN2, reader: StyleGAN2, seed: int, teacher: Teacher) -> str:
    """Digest of what determines the images and labels: weights, seed and teacher. Their pixels are not part
    of it, because their last bits differ between devices.
    """
    who = f"{Path(teacher.about['name']).name} {teacher.about['revision']}"
    digest = hashlib.sha256(f"{seed} {who}".encode())
    for network in (gan, reader):
        for name, value in sorted(network.state_dict().items()):
            if ".lora_" not in name:
                digest.update(name.replace(".base_layer.", ".").encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def generate(gan: StyleGAN2, seed: int, number: int, reader: StyleGAN2) -> tuple[Tensor, np.ndarray]:
    """`reader`'s w (D,) for this number's z, and the image G(w), (S,S,3) uint8."""
    device = next(gan.parameters()).device
    z = torch.randn(1, gan.style_dim, generator=generators(seed, number, 1)[0]).to(device)
    pixels = (gan(gan.mapping(z))[0].clamp(-1, 1) + 1) * 127.5
    return reader.mapping(z)[0].cpu(), pixels.round().byte().permute(1, 2, 0).cpu().numpy()


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(S,S,3) uint8 -> (3,S,S) in [-1,1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def label_truth(intrinsic: Intrinsic, target: Tensor) -> tuple[Tensor, Tensor]:
    """A label (3,S,S) as ground truth, and where it is valid: see `label_as_truth`. Depth (1,S,S) is from 1 to FAR."""
    gt, valid = label_as_truth(intrinsic, target)
    if intrinsic.map_kind.label_is_truth:
        return gt, valid
    return FAR - (FAR - 1) * (target[:1] / 2 + 0.5), torch.ones_like(valid)
