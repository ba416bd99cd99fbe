"""The latents of a training set on disk, encoded once: those of a frozen VAE never change.

<cache_dir>/<key>/latents.bin    (N,3,C,h,w): E(rgb).mode(), mean and std of E(target)'s posterior, in the VAE's dtype
<cache_dir>/<key>/masks.bin      (N,1,h,w) bytes, 1 where a latent cell counts; only of a masked training set
<cache_dir>/<key>/done.bin       (N,) bytes, 1 where a sample's latents are on disk
<cache_dir>/<key>/about.json     the content of the key

The key is a hash of all that changes a latent: the rules by which images are read, the VAE's weights and dtype, the
resolution, the crop, and the name, size and time of every file, also of the masks where they are used. A sample is
marked as done after its bytes have reached the disk, and its latents are the same whichever process encodes it: so a
killed build continues, and processes or runs that build at the same time share the work.
"""

import hashlib
import json
import math
import os
import random
import stat
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm.auto import tqdm

from utils.errors import note
from utils.image_io.rgb import READING
from utils.latents import NAMES, cells, channels, moments, reduction
from utils.system import signals
from utils.system.environment import tf32_variable
from utils.training.data import Joined, TrainingSet, buckets_of

CHUNK = 32  # samples read, written and marked together
READERS = 8  # threads that read images, at most, unless the user names their number
PIXELS = 4 * 512**2  # encoded in one pass: a training batch of 4, so that the cache needs no more memory


class ByShape(Dataset):
    """Data sets of one shape each, joined in the order of the whole training set."""

    def __init__(self, parts: list[tuple[Dataset, list[int]]]):
        self.parts = [part for part, _ in parts]
        self.places = {index: (i, j) for i, (_, indices) in enumerate(parts) for j, index in enumerate(indices)}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        part, place = self.places[key[0] if isinstance(key, tuple) else key]
        return self.parts[part][place]


class CacheFiles(NamedTuple):
    """A cache's files, mapped into memory: latents.bin as integers of the dtype's size, the others as bytes."""

    values: np.memmap
    done: np.memmap
    masks: np.memmap | None


class CachedLatents(Dataset):
    """A training set whose items are latents (utils/latents.py), each (C,h,w), read from the disk's cache.

    masked: items also have a mask, the latent cells that count, bool (1,h,w).
    """

    def __init__(self, folder: Path, stems: list[str], shape: tuple[int, ...], dtype: torch.dtype, masked: bool):
        self.folder, self.stems, self.shape, self.dtype = folder, stems, (len(NAMES), *shape), dtype
        self.masked = masked
        self.files: CacheFiles | None = None

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

    def open(self, mode: Literal["r", "r+"]) -> CacheFiles:
        """Map the files into memory, to read them or to fill them."""
        kind = np.int16 if self.dtype.itemsize == 2 else np.int32  # numpy has no bfloat16
        values = np.memmap(self.folder / "latents.bin", kind, mode, shape=(len(self), *self.shape))
        done, masks = np.memmap(self.folder / "done.bin", np.uint8, mode, shape=(len(self),)), None
        if self.masked:
            masks = np.memmap(self.folder / "masks.bin", np.uint8, mode, shape=(len(self), 1, *self.shape[-2:]))
        return CacheFiles(values, done, masks)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "files": None}  # workers get the path and map the files again


def cached_or_not(
    train_set: TrainingSet,
    vae: Any,
    cache_dir: Path,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    make_room: Callable[[], None] | None = None,
) -> CachedLatents | ByShape | Joined | TrainingSet:
    """The training set's `cached_latents`. With a note, the training set itself where its crops are random or the disk
    has no room. Whole images have one cache per shape, mixed sets one (or these) each: that of the set alone.
    """
    share = (workers, rank, world, make_room)
    if not train_set.center_crop:
        note("random crops: latents are not cached, every step encodes its images")
        return train_set

    def cached(one: TrainingSet) -> CachedLatents | ByShape:
        if not one.whole:
            return cached_latents(one, vae, cache_dir, *share)
        buckets = buckets_of(one.shapes).values()
        return ByShape([(cached_latents(one, vae, cache_dir, *share, part), part) for part in buckets])

    try:
        if train_set.parts:
            return Joined([part._replace(set=cached(part.set)) for part in train_set.parts])
        return cached(train_set)
    except OSError as error:
        note(f"no latent cache, every step encodes its images: {cache_dir}: {error.strerror} (--cache_dir)")
        return train_set


def cached_latents(
    train_set: TrainingSet,
    vae: Any,
    cache_dir: Path,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    make_room: Callable[[], None] | None = None,
    indices: Sequence[int] | None = None,
) -> CachedLatents:
    """The cache of the samples `indices`, which have one shape (default: of all samples); missing latents are encoded.

    workers: threads that read images; 0: the main one. Each of `world` processes begins with its own share.
    make_room: called before anything is encoded, where something is missing. Raises OSError: the disk is full or
    cannot be written.
    """
    images = ImagesAndLabels(train_set, indices)
    stems, side = [train_set.stems[index] for index in images.indices], train_set.shapes[images.indices[0]]
    about = cache_key(train_set, stems, side, vae)
    folder = cache_dir / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    height, width = (pixels // reduction(vae) for pixels in side)
    shape = (channels(vae), height, width)
    folder.mkdir(parents=True, exist_ok=True)
    reserve(folder / "latents.bin", len(stems) * len(NAMES) * math.prod(shape) * vae.dtype.itemsize)
    if train_set.masked:
        reserve(folder / "masks.bin", len(stems) * height * width)
    reserve(folder / "done.bin", len(stems))
    draft = folder / f"about.{os.getpid()}"
    counts = {name: len(about[name]) for name in ("files", "masks") if name in about}
    draft.write_text(json.dumps({**about, **counts}, indent=1))
    draft.replace(folder / "about.json")
    cache = CachedLatents(folder, stems, shape, vae.dtype, train_set.masked)
    if make_room and not cache.open("r").done.all():
        make_room()
    build(cache, images, max(1, PIXELS // math.prod(side)), vae, workers, rank, world)
    return cache


def build(cache: CachedLatents, images: Dataset, size: int, vae: Any, workers: int, rank: int, world: int) -> None:
    """Encode the missing samples: this process's share first, then what is left of the others'. Each process shuffles
    its chunks, so that two runs that fill the same cache seldom encode the same chunk. size: images in one pass.
    """
    files, shuffled = cache.open("r+"), random.Random(os.getpid())
    chunks = np.array_split(np.arange(len(cache)), -(-len(cache) // CHUNK))
    shares = [chunks[(rank + turn) % world :: world] for turn in range(world)]
    chunks = [chunk for share in shares for chunk in shuffled.sample(share, len(share))]
    missing = [chunk for chunk in chunks if not files.done[chunk].all()]
    total = sum(map(len, missing))
    bar = tqdm(total=total, desc="encoding latents", unit="image", disable=rank > 0 or not missing)
    with closing(read_ahead(images, missing, workers)) as batches:
        for chunk, batch in zip(missing, batches):
            if files.done[chunk].all():  # another process has encoded it in the meantime
                bar.update(len(chunk))
                continue
            mask = batch.pop("mask", None)
            stacked, size = encode(vae, batch, size, bar)
            files.values[chunk] = stacked.view(torch.int16 if stacked.element_size() == 2 else torch.int32).numpy()
            files.values.flush()
            if files.masks is not None and mask is not None:
                files.masks[chunk] = cells(mask, (stacked.shape[-2], stacked.shape[-1])).numpy()
                files.masks.flush()
            files.done[chunk] = 1
    bar.close()


def read_ahead(images: Dataset, chunks: Sequence[np.ndarray], workers: int) -> Generator[dict[str, Tensor]]:
    """The samples of every chunk as a batch. `workers` threads read the next chunk while one is encoded; 0: none.

    Threads, since decoding holds no lock of Python's, and processes would need shared memory: 200 MB for a chunk at
    512 px, of which a container has 64.
    """
    if not workers:
        yield from (default_collate([images[index] for index in chunk]) for chunk in chunks)
        return
    pool = ThreadPoolExecutor(workers, "reader")
    try:
        begun: Iterable[dict] = ()
        for chunk in [*chunks, np.empty(0, int)]:
            begun, samples = pool.map(images.__getitem__, chunk), begun
            if batch := list(samples):
                yield default_collate(batch)
    finally:
        pool.shutdown(cancel_futures=True)


def encode(vae: Any, batch: dict[str, Tensor], size: int, bar: tqdm) -> tuple[Tensor, int]:
    """The latents of a batch of rgb and target (B,3,R,R), `size` at a time: (B,3,C,h,w) on the CPU; and `size`, halved
    as often as the device ran out of memory.

    A stop signal ends the process here: what is on disk is kept, and the same command continues it.
    """
    parts: list[Tensor] = []
    done, total = 0, len(batch["rgb"])
    while done < total:
        if stopped_by := signals.stop_requested():
            bar.close()
            note(f"stopped by {stopped_by} while encoding latents; the same command continues where it was")
            sys.exit(0)
        try:
            latents = moments(vae, {name: value[done : done + size].to(vae.device) for name, value in batch.items()})
            parts.append(torch.stack([latents[name] for name in NAMES], dim=1).cpu())
        except torch.OutOfMemoryError:
            if min(size, total - done) == 1:
                raise
            size = min(size, total - done) // 2
            note(f"encoding latents: out of memory on {vae.device}; {size} images at a time now")
            continue
        done += len(parts[-1])
        bar.update(len(parts[-1]))
    return torch.cat(parts), size


class ImagesAndLabels(Dataset):
    """The samples `indices` of a training set (default: all) without their ground truth."""

    def __init__(self, train_set: TrainingSet, indices: Sequence[int] | None = None):
        self.train_set, self.indices = train_set, range(len(train_set)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.train_set[self.indices[index]]
        return {name: sample[name] for name in ("rgb", "target", "mask") if name in sample}


def reserve(path: Path, size: int) -> None:
    """Make a file of `size` zero bytes, all of them on the disk, unless it is there: no write into it can fail later.

    Two processes may do so at the same time: the second one takes the first one's file.
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


def cache_key(train_set: TrainingSet, stems: Sequence[str], shape: tuple[int, int], vae: Any) -> dict:
    """Everything that the latents of these samples depend on, ready for JSON."""
    files, masks = [], []
    folders: dict[str, str] = {}  # resolved once each: that takes ten times as long as everything else about a file
    for stem in stems:
        files += [signature(path, folders) for path in (train_set.rgb_path(stem), train_set.label_path(stem))]
        masks += [signature(path, folders) for path in (train_set.mask_paths(stem) if train_set.masked else ())]
    about = {
        "reading": READING,
        "vae": weights_hash(vae),
        "dtype": str(vae.dtype),
        **arithmetic(vae.device.type, vae.dtype),
        "data": type(train_set).__name__,
        "resolution": train_set.resolution,
        "crop": f"none, {shape}" if train_set.whole else "centre",
        "files": files,
    }
    # the rule is part of the key: older caches count the cells of labels without a value
    return about | ({"masks": masks, "mask_rule": "known labels"} if train_set.masked else {})


def arithmetic(device: str, dtype: torch.dtype) -> dict[str, str]:
    """The other setting that changes the VAE's results in fp32 on a GPU: TF32, by the flag or by NVIDIA's variable."""
    if device != "cuda" or dtype != torch.float32:
        return {}
    products = "TF32" if torch.backends.cuda.matmul.allow_tf32 else "fp32"
    return {"matrix products": products, "NVIDIA_TF32_OVERRIDE": tf32_variable() or "unset"}


def signature(path: Path, folders: dict[str, str]) -> list[str | int]:
    """Changes whenever the file does: its path without links, size and time. folders: those resolved so far."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        path = path.resolve()
        status = path.stat()
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return [f"{folders[folder]}{os.sep}{name}", status.st_size, status.st_mtime_ns]


def weights_hash(vae: Any) -> str:
    """SHA-256 of the encoder's weights, on whatever device they are."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
