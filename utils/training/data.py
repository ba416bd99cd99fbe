"""Training data: what a data set must offer, the samples of each step, and the share of them that a mask keeps."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

from utils.errors import InputError
from utils.intrinsics import Intrinsic
from utils.kinds.base import Score
from utils.latents import cells

INSPECTED = 32  # samples whose masks are counted


class TrainingSet(Protocol):
    """Images and pseudo labels of one intrinsic, by number; a `torch.utils.data.Dataset`.

    Item `index`, or `(index, epoch)` where a new random crop is wanted each epoch, is a dict with rgb and target,
    float32 (3,R,R) in [-1,1], and stem, the sample's name; where `masked` also mask, bool (1,R,R): the pixels that
    count in the loss.

    resolution: R. center_crop: whether an item is the same in every epoch. stems: the samples' names, in order.
    whole: items are whole images, each of its own shape instead of R,R. shapes: (height, width) of every item.
    notes: printed when training starts.
    """

    intrinsic: Intrinsic
    resolution: int
    center_crop: bool
    masked: bool
    whole: bool
    stems: list[str]
    notes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, key: int | tuple[int, int], /) -> dict: ...

    @property
    def shapes(self) -> list[tuple[int, int]]: ...

    def rgb_path(self, stem: str) -> Path:
        """The file of a sample's image."""

    def label_path(self, stem: str) -> Path:
        """The file of a sample's pseudo label."""

    def mask_paths(self, stem: str) -> list[Path]:
        """The files of a sample's mask."""

    @property
    def fingerprint(self) -> str:
        """Identifies the samples and their content: a run is resumed on the same ones."""

    @property
    def score(self) -> Score:
        """The score of a prediction against an item's gt."""

    @property
    def measured(self) -> bool:
        """True if gt is ground truth, False if it is the label."""

    @property
    def reference(self) -> str:
        """The reference of the validation, for the checkpoint's metadata."""


class EndlessBatches(Sampler):
    """This process's batches of an endless, reshuffled stream of samples, from a given position on.

    Position p of the stream is sample permutation(seed, epoch)[p % n] with epoch = p // n. Micro-step m of process r
    reads positions start + (m world + r) B ... + B - 1, start being the number of samples that an earlier run has
    drawn. So the samples of a step depend on seed and step alone: not on how many draws came before, and not on how a
    global batch is cut into processes and micro-steps. Yields lists of (index, epoch).
    """

    def __init__(self, samples: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0):
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.world, self.start = rank, world, start

    def first(self, micro_step: int) -> int:
        """Position of the first sample of this process's batch."""
        return self.start + (micro_step * self.world + self.rank) * self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, int)
        for micro_step in count():
            batch, first = [], self.first(micro_step)
            for position in range(first, first + self.batch_size):
                if position // self.samples != epoch:
                    epoch = position // self.samples
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
                batch.append((int(order[position % self.samples]), epoch))
            yield batch


class BucketBatches(EndlessBatches):
    """The same for samples of several shapes: every step has one shape.

    shapes: of every sample; those of one shape are a bucket. group: samples per step, of all processes and
    micro-steps.

    Each bucket is an endless, reshuffled stream like that of `EndlessBatches`, cut into groups, one for each step. In
    the e-th pass, a bucket of n samples has groups floor(e n / group) to floor((e + 1) n / group) - 1, and the groups
    of all buckets are shuffled by (seed, e). So what does not fill a group waits for the next pass, at the head of its
    bucket's stream. Nothing is dropped: before pass e every sample has been seen e times or less often by at most
    group / n, rounded up. A step's group is a function of its number: see `group_of`.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        group: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ):
        super().__init__(len(shapes), batch_size, seed, rank, world, start)
        self.group, self.buckets = group, buckets_of(shapes)
        self.shapes = list(self.buckets)
        self._pass: tuple[int, list[tuple[int, int]]] = (-1, [])

    def groups_before(self, epoch: int) -> int:
        """How many groups all passes before this one have."""
        return sum(epoch * len(samples) // self.group for samples in self.buckets.values())

    def group_of(self, step: int) -> tuple[int, int]:
        """(number of the bucket, number of the group in its stream) of a step."""
        last = (step + len(self.buckets) + 1) * self.group // self.samples + 1  # a pass that begins after the step
        epoch = bisect_right(range(last + 1), step, key=self.groups_before) - 1
        if self._pass[0] != epoch:
            groups = [
                (bucket, number)
                for bucket, samples in enumerate(self.buckets.values())
                for number in range(epoch * len(samples) // self.group, (epoch + 1) * len(samples) // self.group)
            ]
            order = np.random.default_rng([self.seed, epoch]).permutation(len(groups))
            self._pass = (epoch, [groups[i] for i in order])
        return self._pass[1][step - self.groups_before(epoch)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for micro_step in count():
            step, offset = divmod(self.first(micro_step), self.group)
            bucket, number = self.group_of(step)
            samples, orders = self.buckets[self.shapes[bucket]], {}
            batch = []
            for position in range(number * self.group + offset, number * self.group + offset + self.batch_size):
                epoch, place = divmod(position, len(samples))
                if epoch not in orders:
                    seeds = [self.seed, epoch, *self.shapes[bucket]]
                    orders[epoch] = np.random.default_rng(seeds).permutation(len(samples))
                batch.append((samples[orders[epoch][place]], epoch))
            yield batch


def buckets_of(shapes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """Shape -> the numbers of its samples, in the order of the shapes."""
    buckets: dict[tuple[int, int], list[int]] = {shape: [] for shape in sorted(set(shapes))}
    for index, shape in enumerate(shapes):
        buckets[shape].append(index)
    return buckets


def describe_buckets(shapes: Sequence[tuple[int, int]], group: int, limit: int = 8) -> str:
    """One line about the buckets, the largest first."""
    buckets = sorted(((len(samples), shape) for shape, samples in buckets_of(shapes).items()), reverse=True)
    line = ", ".join(f"{height}x{width}: {count}" for count, (height, width) in buckets[:limit])
    line += f" and {len(buckets) - limit} more" if len(buckets) > limit else ""
    small = sum(count < group for count, _ in buckets)
    rare = f"; {small} of them have less than a step's {group} images and repeat some within it" if small else ""
    return f"whole images, every step of one shape; height x width: images: {line}{rare}"


def masked_share(train_set: TrainingSet, factor: int, seed: int) -> str:
    """One line: the share of pixels and of latent cells that count, over up to 32 samples that `seed` chooses.

    factor: pixels per side of a latent cell. Raises InputError where no cell counts: nothing would be learned.
    """
    chosen = np.random.default_rng([seed, len(train_set)]).permutation(len(train_set))[:INSPECTED]
    pixels, counted, empty = [], [], 0
    for index in sorted(chosen):
        mask = train_set[int(index)]["mask"][None]
        kept = cells(mask, (mask.shape[-2] // factor, mask.shape[-1] // factor))
        pixels.append(mask.float().mean().item())
        counted.append(kept.float().mean().item())
        empty += not kept.any()
    images = f"of {len(chosen)} training images"
    if empty == len(chosen):
        raise InputError(f"--masked_loss: no latent cell {images} has only valid pixels; check the masks")
    if min(counted) == 1:
        return f"masked loss: all pixels {images} are valid, so --masked_loss has no effect on them"
    line = (
        f"masked loss: {np.mean(counted):.1%} of the latent cells count, {np.mean(pixels):.1%} of the pixels are valid"
    )
    return f"{line} ({images[3:]}{f'; {empty} of them have no cell that counts' if empty else ''})"
