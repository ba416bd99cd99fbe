"""An autoregressive generator that continues an image's tokens with those of its map.

The paper (arXiv 2311.17137, section 3) describes a LoRA on the attention layers of VQGAN's transformer. It does not
say how the image is given and what is learned. Here the image's tokens come first, and the label's are learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from accelerate import PartialState
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from generators.transformer import Positions, Tokens, choose, load_autoregressive
from utils.errors import InputError, note
from utils.image_io.images import Crop
from utils.inference.job import Job
from utils.inference.prediction import Prediction, merge_batches
from utils.inference.predictor import Finish, Prepared
from utils.intrinsics import Intrinsic
from utils.kinds.alignment import linear_map
from utils.lora import load_attn_procs
from utils.noise import noise_of
from utils.system.compute import warn_of_slow_bf16
from utils.system.processes import shared_out
from utils.training.data import TrainingSet

Decoding = Literal["one_by_one", "at_once"]
BATCH = 16  # images, and as many labels, that are encoded together


@dataclass
class TokenPrediction:
    """[image tokens] -> [label tokens], decoded by the generator's own VQ decoder.

    decoding: "one_by_one": each label token is read to predict the next, as the generator makes images. "at_once": all
    come from one pass over the image's tokens, which are read twice.
    temperature: of the prediction; 0: always the likeliest token.
    """

    tokens: Tokens
    positions: Positions = "again"
    decoding: Decoding = "one_by_one"
    temperature: float = 0.0

    @classmethod
    def of(cls, tokens: Tokens, metadata: Mapping[str, str], temperature: float = 0.0) -> "TokenPrediction":
        """The objective that a LoRA with this metadata was trained for. InputError if this version lacks it."""
        positions, decoding = metadata.get("positions", "again"), metadata.get("decoding", "one_by_one")
        if positions not in get_args(Positions) or decoding not in get_args(Decoding):
            raise InputError(
                f"positions {positions!r}, decoding {decoding!r}: unknown to this version; take a newer one"
            )
        return cls(tokens, cast(Positions, positions), cast(Decoding, decoding), temperature)

    @property
    def vae(self) -> Any:
        """The frozen model between pixels and what the network reads."""
        return self.tokens.vq

    @property
    def metadata(self) -> dict[str, object]:
        return {"method": "autoregressive", "positions": self.positions, "decoding": self.decoding}

    def loss(self, network: nn.Module, batch: dict[str, Tensor], noise: list[Generator]) -> Tensor:
        """Cross-entropy of the label's tokens, mean over them, in nats.

        batch: rgb, target (B,3,S,S) in [-1,1], or their tokens (B,N), rgb_tokens and target_tokens.
        """
        if "rgb_tokens" in batch:
            image, label = batch["rgb_tokens"], batch["target_tokens"]
        else:
            image, label = self.tokens.encode(torch.cat([batch["rgb"], batch["target"]])).chunk(2)
        read = label if self.decoding == "one_by_one" else None
        logits = network(image, read, self.positions)  # called, because DDP and torch.compile wrap only calls
        return F.cross_entropy(logits.float().transpose(1, 2), label)

    def predict(self, network: nn.Module, rgb: Tensor, noise: list[Generator]) -> Tensor:
        """rgb (B,3,S,S) in [-1,1] -> map (B,3,S,S) about [-1,1], not clamped; `noise` is used at a temperature."""
        image = self.tokens.encode(rgb)
        if self.decoding == "one_by_one":
            label = network.complete(image, self.positions, self.temperature, noise)
        else:
            label = choose(network(image, None, self.positions).float(), self.temperature, noise)
        return self.tokens.decode(label)


class Tokenised(Dataset):
    """`train_set` with items of rgb_tokens and target_tokens, int64 (N,), and stem, and its other attributes."""

    def __init__(self, train_set: TrainingSet, images: Tensor, labels: Tensor):
        self.train_set, self.images, self.labels = train_set, images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index = key[0] if isinstance(key, tuple) else key
        pair = {"rgb_tokens": self.images[index], "target_tokens": self.labels[index]}
        return pair | {"stem": self.train_set.stems[index]}

    def __getattr__(self, name: str) -> Any:
        if name == "train_set":  # while it is unpickled in a worker process
            raise AttributeError(name)
        return getattr(self.train_set, name)


def tokenised(train_set: TrainingSet, tokens: Tokens, device: torch.device, quiet: bool = False) -> Any:
    """The training set with its images encoded once: the VQ model is frozen, so their tokens never change.

    With random crops, which make new images, the set itself and a note.
    """
    if not train_set.center_crop:
        note("random crops: tokens are not kept, every step encodes its images")
        return train_set
    chunks = torch.arange(len(train_set)).split(BATCH)
    bar = tqdm(total=len(chunks), desc="images to tokens", disable=quiet, delay=2)

    def encode(number: int) -> Tensor:
        items = [train_set[index] for index in chunks[number].tolist()]
        pixels = torch.stack([item[name] for name in ("rgb", "target") for item in items])
        bar.update(PartialState().num_processes)
        return torch.stack(tokens.encode(pixels.to(device)).cpu().chunk(2))

    parts = shared_out(len(chunks), encode)
    bar.close()
    return Tokenised(train_set, *torch.cat(parts, dim=1))


class TokenPredictor:
    """A LoRA on an autoregressive generator that predicts maps of centre squares: a `utils.inference.run.Network`.

    temperature: 0 for the likeliest tokens; above it they are sampled from (seed, name, member of the ensemble).
    """

    def __init__(
        self,
        job: Job,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        temperature: float = 0.0,
        ensemble_size: int = 1,
        seed: int = 1234,
    ):
        self.job, self.batch_size, self.ensemble_size, self.seed = job, batch_size, ensemble_size, seed
        self.facts = {job.intrinsic.name: job.facts}  # kept: it reads the whole file
        self.base = load_autoregressive(job.model)
        metadata = load_attn_procs(self.base.network, job.name)
        warn_of_slow_bf16(dtype, device.type, "--dtype fp32")
        self.base.to(device, dtype)
        self.device = device
        self.objective = TokenPrediction.of(self.base.tokens, metadata, temperature)

    @property
    def intrinsics(self) -> list[Intrinsic]:
        return [self.job.intrinsic]

    def prepare(self, image: Image.Image) -> Prepared:
        """The centre square at the generator's resolution."""
        crop = Crop.of(*image.size, self.base.resolution)
        return Prepared(crop.picture(image), crop, image)

    def begin(self, images: Sequence[Prepared], names: Sequence[str]) -> list[dict[str, Finish]]:
        """Nothing is left to do for maps of squares."""
        return [
            {name: partial(lambda one: one, one) for name, one in each.items()} for each in self.predict(images, names)
        ]

    @torch.inference_mode()
    def predict(self, images: Sequence[Prepared], names: Sequence[str]) -> list[dict[str, Prediction]]:
        rgb = torch.stack([image.rgb for image in images]).to(self.device)
        intrinsic, members = self.job.intrinsic, []
        for member in range(self.ensemble_size):
            noise = [noise_of(self.seed, name, member) for name in names]
            maps = self.objective.predict(self.base.network, rgb, noise).float().cpu()
            members.append(linear_map(maps, self.job.depth_coding))
        merged, facts = zip(*merge_batches(members, intrinsic), strict=True), self.facts[intrinsic.name]
        return [{intrinsic.name: Prediction(intrinsic, one, spread, facts)} for one, spread in merged]
