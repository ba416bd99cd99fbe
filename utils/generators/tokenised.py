"""A training set whose pictures have become tokens, once: the VQ model is frozen, so they never change."""

from typing import Any

import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from utils.errors import note
from utils.generators.picture_tokens import Tokens
from utils.training.data import TrainingSet

BATCH = 16  # pictures and labels each, encoded at once


class Tokenised(Dataset):
    """`train_set` with items of rgb_tokens and target_tokens, int64 (N,), and stem; all else is the set's own."""

    def __init__(self, train_set: TrainingSet, pictures: torch.Tensor, labels: torch.Tensor):
        self.train_set, self.pictures, self.labels = train_set, pictures, labels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index = key[0] if isinstance(key, tuple) else key
        pair = {"rgb_tokens": self.pictures[index], "target_tokens": self.labels[index]}
        return pair | {"stem": self.train_set.stems[index]}

    def __getattr__(self, name: str) -> Any:
        if name == "train_set":  # on the way to a worker process, before there is one
            raise AttributeError(name)
        return getattr(self.train_set, name)


def tokenised(train_set: TrainingSet, tokens: Tokens, device: torch.device, quiet: bool = False) -> Any:
    """The training set with its pictures encoded, or itself, with a note, where random crops make new ones."""
    if not train_set.center_crop:
        note("random crops: tokens are not kept, every step encodes its pictures")
        return train_set
    parts = []
    bar = tqdm(torch.arange(len(train_set)).split(BATCH), desc="pictures to tokens", disable=quiet, delay=2)
    for chosen in bar:
        items = [train_set[index] for index in chosen.tolist()]
        pixels = torch.stack([item[name] for name in ("rgb", "target") for item in items])
        parts.append(torch.stack(tokens.encode(pixels.to(device)).cpu().chunk(2)))
    return Tokenised(train_set, *torch.cat(parts, dim=1))
