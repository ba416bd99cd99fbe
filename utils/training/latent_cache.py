"""The latents of a training set on disk, encoded once: what the frozen VAE says of a picture never changes.

<cache_dir>/<key>/latents.bin    (N,3,4,h,w): E(rgb).mode(), mean and std of E(target)'s posterior, in the VAE's dtype
<cache_dir>/<key>/masks.bin      (N,1,h,w) bytes, 1 where a latent cell counts; only of a masked training set
<cache_dir>/<key>/done.bin       (N,) bytes, 1 where a sample's latents are on disk
<cache_dir>/<key>/about.json     what the key was made of

The key holds all that changes a latent: the rules by which images are read, the VAE's weights and dtype, the
resolution, the crop, and every file's name, size and time, a mask's too where it is used. A sample is marked as done
after its bytes have reached the disk, and every sample's latents are the same whoever encodes it: so a killed build
continues, and processes or runs that build at the same time share the work.
"""

import hashlib
import json
import math
import os
import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from utils.errors import note
from utils.image_io.rgb import READING
from utils.latents import NAMES, cells, moments
from utils.system import signals
from utils.training.shapes import ByShape, OneShape, one_shape_each
from utils.training.training_set import TrainingSet

CHUNK = 32  # samples read, written and marked together
PIXELS = 4 * 512**2  # encoded at once: what a batch of 4 takes in training, so that the cache takes no more memory


class Files(NamedTuple):
    """A cache's files, mapped into memory: latents.bin as integers of the dtype's size, the others as bytes."""

    values: np.memmap
    done: np.memmap
    masks: np.memmap | None


class CachedLatents(Dataset):
    """A training set whose items are latents (utils/latents.py), each (4,h,w), read from the disk's cache.

    masked: items also have a mask, the latent cells that count, bool (1,h,w).
    """

    def __init__(self, folder: Path, stems: list[str], shape: tuple[int, ...], dtype: torch.dtype, masked: bool):
        self.folder, self.stems, self.shape, self.dtype = folder, stems, (len(NAMES), *shape), dtype
        self.masked = masked
        self.files: Files | None = None

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index = key[0] if isinstance(key, tuple) else key
        if self.files is None:  # in a worker process, at its first item
            self.files = self.open("r")
        values = torch.from_numpy(np.array(self.files.values[index])).view(self.dtype)
        item = {**dict(zip(NAMES, values)), "stem": self.stems[index]}
        if self.files.masks is not None:
            item["mask"] = torch.from_numpy(np.array(self.files.masks[index])).bool()
        return item

    def open(self, mode: Literal["r", "r+"]) -> Files:
        """Map the files into memory, to read them or to fill them."""
        kind = np.int16 if self.dtype.itemsize == 2 else np.int32  # numpy knows no bfloat16
        values = np.memmap(self.folder / "latents.bin", kind, mode, shape=(len(self), *self.shape))
        done, masks = np.memmap(self.folder / "done.bin", np.uint8, mode, shape=(len(self),)), None
        if self.masked:
            masks = np.memmap(self.folder / "masks.bin", np.uint8, mode, shape=(len(self), 1, *self.shape[-2:]))
        return Files(values, done, masks)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "files": None}  # a map does not travel to workers; its path does


def cached_or_not(
    train_set: TrainingSet, vae: AutoencoderKL, cache_dir: Path, workers: int = 0, rank: int = 0, world: int = 1
) -> CachedLatents | ByShape | TrainingSet:
    """The training set's `cached_latents`, or itself where they would not be the same or have no place; a note says
    so. Whole pictures have a cache for each shape.
    """
    if not train_set.center_crop:
        note("random crops: latents are not cached, every step encodes its pictures")
        return train_set
    try:
        if train_set.whole:
            parts = one_shape_each(train_set)
            return ByShape(
                [(cached_latents(part, vae, cache_dir, workers, rank, world), part.indices) for part in parts]
            )
        return cached_latents(train_set, vae, cache_dir, workers, rank, world)
    except OSError as error:
        note(f"no latent cache, every step encodes its pictures: {cache_dir}: {error.strerror} (--cache_dir)")
        return train_set


def cached_latents(
    train_set: TrainingSet | OneShape,
    vae: AutoencoderKL,
    cache_dir: Path,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> CachedLatents:
    """The cache of `train_set`, after what was missing of it has been built.

    Each of `world` processes begins with its own share. Raises OSError: the disk is full or cannot be written.
    """
    about = describe(train_set, vae)
    folder = cache_dir / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    height, width = (side // 2 ** (len(vae.config.block_out_channels) - 1) for side in train_set.shapes[0])
    shape = (vae.config.latent_channels, height, width)
    folder.mkdir(parents=True, exist_ok=True)
    reserve(folder / "latents.bin", len(train_set) * len(NAMES) * math.prod(shape) * vae.dtype.itemsize)
    if train_set.masked:
        reserve(folder / "masks.bin", len(train_set) * height * width)
    reserve(folder / "done.bin", len(train_set))
    draft = folder / f"about.{os.getpid()}"
    counts = {name: len(about[name]) for name in ("files", "masks") if name in about}
    draft.write_text(json.dumps({**about, **counts}, indent=1))
    draft.replace(folder / "about.json")
    cache = CachedLatents(folder, train_set.stems, shape, vae.dtype, train_set.masked)
    build(cache, train_set, vae, workers, rank, world)
    return cache


def build(
    cache: CachedLatents, train_set: TrainingSet | OneShape, vae: AutoencoderKL, workers: int, rank: int, world: int
) -> None:
    """Encode what is not done, this process's share first: who is quick helps the others out. The order of the chunks
    is its own, so that other runs that fill the same cache seldom encode what this one is at.
    """
    files, shuffled = cache.open("r+"), random.Random(os.getpid())
    chunks = np.array_split(np.arange(len(cache)), -(-len(cache) // CHUNK))
    shares = [chunks[(rank + turn) % world :: world] for turn in range(world)]
    chunks = [chunk for share in shares for chunk in shuffled.sample(share, len(share))]
    missing = [chunk for chunk in chunks if not files.done[chunk].all()]
    loader = DataLoader(Pictures(train_set), batch_sampler=missing, num_workers=workers, worker_init_fn=signals.ignore)
    images = sum(map(len, missing))
    bar = tqdm(total=images, desc="encoding latents", unit="image", disable=rank > 0 or not missing)
    for chunk, batch in zip(missing, loader):
        if files.done[chunk].all():  # another process was here meanwhile
            bar.update(len(chunk))
            continue
        mask = batch.pop("mask", None)
        stacked = encode(vae, batch, max(1, PIXELS // math.prod(train_set.shapes[0])), bar)
        files.values[chunk] = stacked.view(torch.int16 if stacked.element_size() == 2 else torch.int32).numpy()
        files.values.flush()
        if files.masks is not None and mask is not None:
            files.masks[chunk] = cells(mask, (stacked.shape[-2], stacked.shape[-1])).numpy()
            files.masks.flush()
        files.done[chunk] = 1
    bar.close()


def encode(vae: AutoencoderKL, batch: dict[str, Tensor], at_once: int, bar: tqdm) -> Tensor:
    """The latents of a batch of rgb and target (B,3,R,R), `at_once` after one another: (B,3,4,h,w) on the CPU.

    A signal that asks to stop ends the process here: what is on disk is kept, and the same command goes on.
    """
    parts = []
    for some in zip(*(batch[name].split(at_once) for name in batch)):
        if stopped_by := signals.stop_requested():
            bar.close()
            note(f"stopped by {stopped_by} while encoding latents; the same command goes on where it was")
            sys.exit(0)
        latents = moments(vae, {name: value.to(vae.device) for name, value in zip(batch, some)})
        parts.append(torch.stack([latents[name] for name in NAMES], dim=1).cpu())
        bar.update(len(some[0]))
    return torch.cat(parts)


class Pictures(Dataset):
    """A training set without its ground truth."""

    def __init__(self, train_set: TrainingSet | OneShape):
        self.train_set = train_set

    def __len__(self) -> int:
        return len(self.train_set)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.train_set[index]
        return {name: sample[name] for name in ("rgb", "target", "mask") if name in sample}


def reserve(path: Path, size: int) -> None:
    """Make a file of `size` zero bytes, all of them on the disk, unless it is there: no write into it can fail later.

    Two processes may do so at once: who comes second takes the first one's file.
    """
    if path.exists() and path.stat().st_size == size:
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def describe(train_set: TrainingSet | OneShape, vae: AutoencoderKL) -> dict:
    """All that a latent depends on, fit for JSON."""
    files, masks = [], []
    for stem in train_set.stems:
        files += [signature(path) for path in (train_set.rgb_path(stem), train_set.label_path(stem))]
        masks += [signature(path) for path in (train_set.mask_paths(stem) if train_set.masked else ())]
    about = {
        "reading": READING,
        "vae": weights_hash(vae),
        "dtype": str(vae.dtype),
        "data": type(train_set.train_set if isinstance(train_set, OneShape) else train_set).__name__,
        "resolution": train_set.resolution,
        "crop": f"none, {train_set.shapes[0]}" if train_set.whole else "centre",
        "files": files,
    }
    # the rule is part of the key: older caches count cells of labels without a value
    return about | ({"masks": masks, "mask_rule": "known labels"} if train_set.masked else {})


def signature(path: Path) -> list[str | int]:
    """What tells a changed file from an unchanged one: its place, size and time."""
    status = os.stat(path)
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def weights_hash(vae: AutoencoderKL) -> str:
    """SHA-256 of the encoder's weights, on whatever device they are."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
