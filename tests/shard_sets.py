"""Small shard sets of random images."""

from pathlib import Path

import numpy as np

from maep.data.shard_manifest import CleanManifest
from maep.data.shards import ShardWriter, seal_shard_set, shard_name


def pixels(count: int, size: int = 9) -> np.ndarray:
    """Random images, uint8 [count, size, size + 1, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size + 1, 3), dtype=np.uint8)


def write_set(path: Path, images: np.ndarray, encoding: str = "png", each: int = 5) -> Path:
    """A sealed set with `each` images a shard; labels are the index modulo 3."""
    for number, first in enumerate(range(0, len(images), each)):
        with ShardWriter(path / shard_name(number), encoding) as writer:
            for index in range(first, min(first + each, len(images))):
                writer.write(index, images[index], index % 3)
    seal_shard_set(path, CleanManifest(classes=("a", "b", "c")))
    return path
