"""Random numbers that are a pure function of a key, never of a process's state.

Order, masks, augmentation and attack starts draw from here, so that they do not depend on the
number of processes, on the batch they land in, or on where a run was resumed.
"""

import zlib

import numpy as np


def keyed_rng(purpose: str, *key: int) -> np.random.Generator:
    """A generator for one purpose and key, e.g. `keyed_rng("mask", seed, epoch, index)`.

    Equal arguments give equal streams on every machine; different ones give independent streams.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([zlib.crc32(purpose.encode()), *key])))
