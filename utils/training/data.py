"""Training data: what a data set must offer, the samples of each step, and the share of them that a mask keeps."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

from utils.errors import InputError
from utils.intrinsics import Intrinsic
from utils.kinds.base import Score
from utils.latents import cells

INSPECTED = 32  # samples whose masks are counted


class Part(NamedTuple):
    """A training set, or its cached latents, and its share of the samples of every step."""

    name: str  # without a slash
    set: Any
    share: Fraction


class TrainingSet(Protocol):
    """Images and pseudo labels of one intrinsic, by number; a `torch.utils.data.Dataset`.

    Item `index`, or `(index, epoch)` where a new random crop is wanted each epoch, is a dict with rgb and target,
    float32 (3,R,R) in [-1,1], and stem, the sample's name; where `masked` also mask, bool (1,R,R): the pixels that
    count in the loss.

    resolution: R. center_crop: whether an item is the same in every epoch. stems: the samples' names, in order.
    whole: items are whole images, each of its own shape instead of R,R. shapes: (height, width) of every item.
    notes: printed when training starts. parts: the sets that it mixes, see `Mixed`; empty for a single one.
    """

    intrinsic: Intrinsic
    resolution: int
    center_crop: bool
    masked: bool
    whole: bool
    stems: list[str]
    notes: list[str]
    parts: Sequence[Part]

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

    @property
    def trained_on(self) -> str:
        """The published sets that the images are of, with their own split: "hypersim train,vkitti"; empty where no
        record names one.
        """


class Joined(Dataset):
    """Data sets one after the other: their items are numbered through, and a stem begins with its set's name."""

    def __init__(self, parts: Sequence[Part]):
        self.parts = parts
        self.firsts = [0, *accumulate(len(part.set) for part in parts)]  # numbers of their first items, and the end

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index, *epoch = key if isinstance(key, tuple) else (key,)
        part = bisect_right(self.firsts, index) - 1
        place = index - self.firsts[part]
        item = self.parts[part].set[(place, *epoch) if epoch else place]
        return item | {"stem": f"{self.parts[part].name}/{item['stem']}"}


class Mixed(Joined):
    """Training sets of one intrinsic with a fixed share each; see `TrainingSet`, and `MixedBatches` for the order.

    They have the same resolution, crop and mask flags. Raises InputError where only some of them have ground truth.
    """

    def __init__(self, parts: Sequence[Part]):
        super().__init__(parts)
        first: TrainingSet = parts[0].set
        self.intrinsic, self.resolution, self.center_crop = first.intrinsic, first.resolution, first.center_crop
        self.masked, self.whole, self.score, self.measured = first.masked, first.whole, first.score, first.measured
        self.reference = first.reference
        self.trained_on = ",".join(dict.fromkeys(part.set.trained_on for part in parts if part.set.trained_on))
        if len({part.set.measured for part in parts}) > 1:
            some, none = (", ".join(part.name for part in parts if part.set.measured == has) for has in (True, False))
            raise InputError(
                f"--mix: {some} has ground truth and {none} has none, so their scores would differ in meaning; give "
                "all of them a gt/, or none"
            )
        self.stems = [f"{part.name}/{stem}" for part in parts for stem in part.set.stems]
        self.notes = [f"{part.name}: {text}" for part in parts for text in part.set.notes]

    def owner(self, stem: str) -> tuple[TrainingSet, str]:
        """The set that a sample comes from, and its name there."""
        name, _, own = stem.partition("/")
        return next(part.set for part in self.parts if part.name == name), own

    def rgb_path(self, stem: str) -> Path:
        part, own = self.owner(stem)
        return part.rgb_path(own)

    def label_path(self, stem: str) -> Path:
        part, own = self.owner(stem)
        return part.label_path(own)

    def mask_paths(self, stem: str) -> list[Path]:
        part, own = self.owner(stem)
        return part.mask_paths(own)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [shape for part in self.parts for shape in part.set.shapes]

    @property
    def fingerprint(self) -> str:
        return " + ".join(f"{float(part.share):g} of {part.set.fingerprint}" for part in self.parts)


def mix_of(train_set: TrainingSet) -> str:
    """The sets that a training set mixes, with their shares and sizes; empty for a single one."""
    return ", ".join(f"{float(100 * part.share):g} % {part.name} ({len(part.set)} images)" for part in train_set.parts)


def each(train_set: TrainingSet, text_of: Callable[[TrainingSet], str]) -> list[str]:
    """`text_of` the training set or, where it mixes several, of each one, after its name."""
    if not train_set.parts:
        return [text_of(train_set)]
    return [f"{part.name}: {text_of(part.set)}" for part in train_set.parts]


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
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def first(self, micro_step: int) -> int:
        """Position of the first sample of this process's batch."""
        return self.start + (micro_step * self.world + self.rank) * self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for micro_step in count():
            yield self.at(self.first(micro_step), self.batch_size)

    def at(self, first: int, size: int) -> list[tuple[int, int]]:
        """(index, epoch) of the `size` samples of the stream from position `first` on."""
        batch = []
        for position in range(first, first + size):
            epoch, place = divmod(position, self.samples)
            if self._order[0] != epoch:
                self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.samples)
            batch.append((int(self._order[1][place]), epoch))
        return batch


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

    def at(self, first: int, size: int) -> list[tuple[int, int]]:
        step, offset = divmod(first, self.group)
        bucket, number = self.group_of(step)
        samples, orders = self.buckets[self.shapes[bucket]], {}
        batch = []
        for position in range(number * self.group + offset, number * self.group + offset + size):
            epoch, place = divmod(position, len(samples))
            if epoch not in orders:
                seeds = [self.seed, epoch, *self.shapes[bucket]]
                orders[epoch] = np.random.default_rng(seeds).permutation(len(samples))
            batch.append((samples[orders[epoch][place]], epoch))
        return batch


class MixedBatches(EndlessBatches):
    """The same for several sets, of which each has a fixed share of the samples of every step.

    streams: the sets' own, of which only `at` is used. group: samples per step, of all processes and micro-steps.
    whole: a step has one shape, so all of its samples come from one set, and the shares hold over the steps.

    A step has `quotas` samples of each set, the next ones of the set's own stream. So here, too, the samples of a step
    depend on seed and step alone.
    """

    def __init__(
        self,
        streams: Sequence[EndlessBatches],
        shares: Sequence[Fraction],
        group: int,
        whole: bool,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ):
        start = -(-start // group) * group  # a step's beginning, also where --force_resume changes the step's size
        super().__init__(sum(stream.samples for stream in streams), batch_size, 0, rank, world, start)
        self.streams, self.group = streams, group
        self.firsts = [0, *accumulate(stream.samples for stream in streams)]
        self.quotas = quotas(shares, 1) * group if whole else quotas(shares, group)
        self.before = np.cumsum(self.quotas, axis=0) - self.quotas  # samples of each set in a window before each step

    def at(self, first: int, size: int) -> list[tuple[int, int]]:
        step, offset = divmod(first, self.group)
        window, row = divmod(step, len(self.quotas))
        places = (window * self.quotas.sum(axis=0) + self.before[row]).tolist()
        batch, begin = [], 0
        for stream, index, position, quota in zip(self.streams, self.firsts, places, self.quotas[row].tolist()):
            skipped, end = max(offset - begin, 0), min(offset + size - begin, quota)  # this batch's part of the quota
            if skipped < end:
                batch += [(index + one, epoch) for one, epoch in stream.at(position + skipped, end - skipped)]
            begin += quota
        return batch


def quotas(shares: Sequence[Fraction], size: int) -> np.ndarray:
    """How many of a step's `size` samples each share gets, in each step of a window that then repeats: (D, K).

    In every step share * size rounded down or up, over the window exactly. D: the least number of steps for which that
    is possible. The samples that rounding down leaves over are drawn systematically: in each step they are points with
    distance 1 on a line on which every share has a piece as long as its fraction. The position of the points differs
    from step to step by about the golden ratio, so that a set's extra samples are spread evenly over the window.
    """
    exact = [share * size for share in shares]
    window = math.lcm(*(value.denominator for value in exact))
    ends = np.array([0, *accumulate(int(value % 1 * window) for value in exact)])  # where pieces end, in 1 / window
    stride = next(n for n in count(round(window * 0.618)) if math.gcd(n, window) == 1)
    points = np.arange(window)[:, None] * stride % window
    extra = np.diff((ends - points + window - 1) // window, axis=1)
    return np.array([int(value) for value in exact]) + extra


def batches_of(
    train_set: TrainingSet, group: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0
) -> EndlessBatches:
    """The batches of a training set, by its shapes and parts. group: samples per step."""
    place = (rank, world, start)
    if train_set.parts:
        own = [part.set for part in train_set.parts]
        streams = [batches_of(one, group, batch_size, seed + (number << 32)) for number, one in enumerate(own)]
        shares = [part.share for part in train_set.parts]
        return MixedBatches(streams, shares, group, train_set.whole, batch_size, *place)
    if train_set.whole:
        return BucketBatches(train_set.shapes, group, batch_size, seed, *place)
    return EndlessBatches(len(train_set), batch_size, seed, *place)


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
