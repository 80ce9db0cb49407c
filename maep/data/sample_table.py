"""Where every sample of a shard set lies, in 20 bytes a sample: what random access needs of all its indexes.

The table is filled from the indexes, shard by shard as they are needed, or mapped from a file that holds it whole, so
that every process on a node shares one copy and none parses JSON:

    16 bytes    MAGIC
    32 bytes    SHA-256 of the manifest that the set had; with another one, the file is made again
    16 bytes    CRC-32 of the rows in hexadecimal, padded
    the rows    ROW, one a sample

The file is derived: it may be deleted at any time, and a set does without it.
"""

import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from maep.data.shard_manifest import ShardEntry, ShardIndex
from maep.runtime.errors import UserError, fail
from maep.runtime.plain_files import open_regular
from maep.storage.atomic import atomic_file

ROW = np.dtype([("offset", "<i8"), ("bytes", "<u4"), ("crc32", "<u4"), ("label", "<i4")])
LARGEST = 2**32 - 1  # what `bytes` and `crc32` hold
MAGIC = b"maep samples 1\n\0"
HEADER = len(MAGIC) + 32 + 16


class SampleTable:
    """`rows` [count] of ROW for the samples of `shards`, and which shards' rows are known."""

    def __init__(self, shards: Sequence[ShardEntry], count: int) -> None:
        self._firsts = np.array([shard.first for shard in shards], dtype=np.int64)
        self.rows = np.zeros(count, ROW)  # zero pages: memory is taken as shards are filled in
        self._known = np.zeros(len(shards), dtype=bool)

    def shards_of(self, samples: np.ndarray) -> np.ndarray:
        """Numbers of the shards that hold some samples, int64 [n]; the samples lie in the set."""
        return np.searchsorted(self._firsts, samples, side="right") - 1

    def unknown(self, shards: np.ndarray) -> list[int]:
        """Those of some shards that are still to be filled in, each once, in order."""
        return np.unique(shards[~self._known[shards]]).tolist()

    def all_unknown(self) -> list[int]:
        """All shards that are still to be filled in."""
        return np.flatnonzero(~self._known).tolist()

    def fill(self, number: int, index: ShardIndex, source: object) -> None:
        """Take in the index of one shard. Raises UserError, naming `source`, for values that no shard has."""
        for name, values in (("bytes", index.bytes), ("crc32", index.crc32)):
            if ((values < 0) | (values > LARGEST)).any():
                fail(f"{source}: {name}: expected whole numbers from 0 to {LARGEST}")
        if (index.labels > np.iinfo(np.int32).max).any():
            fail(f"{source}: labels: expected whole numbers below {2**31}")
        rows = self.rows[index.first : index.first + index.count]
        rows["offset"], rows["bytes"], rows["crc32"], rows["label"] = (
            index.offsets, index.bytes, index.crc32, index.labels,
        )  # fmt: skip
        self._known[number] = True

    def map_file(self, path: Path, manifest: bytes) -> bool:
        """Take the rows from a file that was written for this manifest (its SHA-256); False if it does not fit."""
        try:
            with open_regular(path) as file:
                header = file.read(HEADER)
                if os.fstat(file.fileno()).st_size != HEADER + self.rows.nbytes:
                    return False
                rows = np.memmap(file, ROW, "r", HEADER, (len(self.rows),))
        except (OSError, UserError):
            return False
        if header != _header(manifest, rows):
            return False
        self.rows = rows
        self._known[:] = True
        return True

    def write_file(self, path: Path, manifest: bytes) -> None:
        """Write the rows, all of them known. Raises UserError if the directory cannot be written."""
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            file.write(_header(manifest, self.rows))
            file.write(self.rows.data)


def _header(manifest: bytes, rows: np.ndarray) -> bytes:
    """What a file of these rows begins with; it covers every byte that follows."""
    return MAGIC + manifest + f"{zlib.crc32(rows.data):08x}".encode().ljust(16)


def parts_of(numbers: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    """A sequence in runs of at most `size`."""
    return (numbers[start : start + size] for start in range(0, len(numbers), size))
