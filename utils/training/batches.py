"""Which samples each step sees: a function of the seed and the step alone."""

from collections.abc import Iterator
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
