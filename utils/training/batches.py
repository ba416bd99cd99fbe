"""Which samples each step sees: a function of the seed and the step alone."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from torch.utils.data import Sampler


class EndlessBatches(Sampler):
    """This process's batches of an endless, reshuffled stream of samples, from a given place on.

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


def described(shapes: Sequence[tuple[int, int]], group: int, shown: int = 8) -> str:
    """One line: the buckets, the largest first."""
    buckets = sorted(((len(samples), shape) for shape, samples in buckets_of(shapes).items()), reverse=True)
    line = ", ".join(f"{height}x{width}: {count}" for count, (height, width) in buckets[:shown])
    line += f" and {len(buckets) - shown} more" if len(buckets) > shown else ""
    small = sum(count < group for count, _ in buckets)
    rare = f"; {small} of them have less than a step's {group} images and repeat some within it" if small else ""
    return f"whole pictures, every step of one shape; height x width: images: {line}{rare}"
