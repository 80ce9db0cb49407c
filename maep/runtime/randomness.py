"""Random numbers that are a pure function of a key, never of a process's state.

Order, masks, augmentation and attack starts draw from here, so that they do not depend on the
number of processes, on the batch they land in, or on where a run was resumed.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

# The hash of numpy.random.SeedSequence (O'Neill's seed_seq_fe), whose results NumPy promises never to change.
INIT_A, MULTIPLY_A, INIT_B, MULTIPLY_B = 0x43B0D7E5, 0x931E8875, 0x8B51F9DD, 0x58F38DED
MIX_LEFT, MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
POOL = 4  # words of 32 bits
WORD = 2**32


def keyed_rng(purpose: str, *key: int) -> np.random.Generator:
    """A generator for one purpose and key, e.g. `keyed_rng("mask", seed, epoch, index)`.

    Equal arguments give equal streams on every machine; different ones give independent streams.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([zlib.crc32(purpose.encode()), *key])))


def keyed_rngs(purpose: str, seed: int, keys: Sequence[tuple[int, int]]) -> Iterator[np.random.Generator]:
    """The generators `keyed_rng(purpose, seed, *key)` of many keys, in order, at a tenth of the time of each.

    It is one generator that is set anew for every key: draw from each before asking for the next.
    """
    if not all(0 <= number < WORD for number in (seed, *(number for key in keys for number in key))):
        yield from (keyed_rng(purpose, seed, *key) for key in keys)  # such a number takes more than one word
        return
    words = np.empty((len(keys), POOL), dtype=np.uint32)
    words[:, 0], words[:, 1], words[:, 2:] = zlib.crc32(purpose.encode()), seed, np.array(keys).reshape(-1, 2)
    philox = np.random.Philox(0)
    generator, fresh = np.random.Generator(philox), philox.state
    for key in _philox_keys(words):
        fresh["state"]["key"] = key
        philox.state = fresh
        yield generator


def _philox_keys(words: np.ndarray) -> np.ndarray:
    """`SeedSequence(row).generate_state(2, uint64)` of every row of uint32 [n, POOL]; uint64 [n, 2]."""
    constants = _powers(INIT_A, MULTIPLY_A)
    pool = [_hashed(words[:, i], constants) for i in range(POOL)]
    for source in range(POOL):
        for target in range(POOL):
            if source != target:
                mixed: np.ndarray = MIX_LEFT * pool[target] - MIX_RIGHT * _hashed(pool[source], constants)
                pool[target] = mixed ^ mixed >> np.uint32(16)
    constants = _powers(INIT_B, MULTIPLY_B)
    state = np.stack([_hashed(pool[i], constants) for i in range(POOL)], axis=1)
    return np.ascontiguousarray(state, dtype="<u4").view("<u8")


def _powers(constant: int, factor: int) -> Iterator[tuple[np.uint32, np.uint32]]:
    """The constants of the hash, each the last times the factor, with the one after it."""
    while True:
        following = constant * factor % WORD
        yield np.uint32(constant), np.uint32(following)
        constant = following


def _hashed(values: np.ndarray, constants: Iterator[tuple[np.uint32, np.uint32]]) -> np.ndarray:
    """One round of the hash on uint32 [n]."""
    constant, following = next(constants)
    values = (values ^ constant) * following
    return values ^ values >> np.uint32(16)


class SideBySide:
    """Generators of batches that lie one after the other: an image draws from that of its batch, as it would alone."""

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self.generators = generators

    def of_images(self, count: int) -> Iterator[np.random.Generator]:
        """The generator of each of `count` images, in order. Draw all that an image needs before asking for the next.

        Raises ValueError where the batches are not equally many images.
        """
        each, rest = divmod(count, len(self.generators))
        if rest:
            raise ValueError(f"{count} images: not a multiple of {len(self.generators)} draws")
        for generator in self.generators:
            yield from [generator] * each
