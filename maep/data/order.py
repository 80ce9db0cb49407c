"""The order of samples: a pure function of (seed, epoch), the same for any number of ranks and workers.

Training consumes one endless sequence: a permutation of all samples, then the next epoch's, and so on. Its
only state is the global position, *samples consumed*.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from maep.runtime.randomness import keyed_rng

T = TypeVar("T")


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    order = keyed_rng("order", seed, epoch).permutation(count)
    order.flags.writeable = False
    return order


def sample_at(position: int, count: int, seed: int) -> tuple[int, int]:
    """(epoch, sample index) of one global position.

    position: samples consumed before it, >= 0; count: samples of the set, > 0; index in [0, count).
    Raises ValueError for a position or count out of range.
    """
    if count < 1 or position < 0:
        raise ValueError(f"position {position} of {count} samples: out of range")
    epoch, row = divmod(position, count)
    return epoch, int(_permutation(count, seed, epoch)[row])


def batch_at(position: int, size: int, count: int, seed: int) -> list[tuple[int, int]]:
    """(epoch, sample index) of the positions [position, position + size), which may straddle epochs."""
    return [sample_at(at, count, seed) for at in range(position, position + size)]


def slice_of(batch: Sequence[T], rank: int, world: int) -> Sequence[T]:
    """The contiguous share of `batch` for one rank; shares differ by at most 1 in size and cover the batch.

    Raises ValueError if rank is not in [0, world).
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}: out of range")
    return batch[len(batch) * rank // world : len(batch) * (rank + 1) // world]


def held_out_indices(seed: int, images: int, count: int) -> list[int]:
    """Which of so many training images are held out, in order."""
    drawn = keyed_rng("held out", seed).choice(images, count, replace=False) if count else ()
    return sorted(map(int, drawn))


def labels_held_out(labels: Sequence[int], held: Sequence[int]) -> list[int]:
    """Labels all of whose images are held out, in order: nothing is learnt of them."""
    rest = Counter(labels)
    rest.subtract(labels[index] for index in held)
    return sorted(label for label, count in rest.items() if not count)
