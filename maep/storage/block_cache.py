"""Blocks of remote files kept in a local directory: bounded, least recently used first out, shared by processes.

    <directory>/NAME          one block: its CRC-32 (4 bytes), then its content
    <directory>/.total        how many bytes there are; never less than that. Held with flock to be changed

A block is renamed into place and not synced to the disk: should it be torn by a power loss, its checksum shows that,
and it is fetched again.
"""

import fcntl
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from maep.runtime.console import say
from maep.runtime.errors import UserError
from maep.storage.atomic import remove_temporaries, temporary_name

HEADER = 4
DIGITS = 19  # of the largest number of bytes that a disk may have; a damaged total may be anything
FILL_AFTER_EVICTION = 0.9  # of the limit: an eviction looks at every block, so each makes room for many


class BlockCache:
    """At most `limit` bytes of blocks in `directory`, by name, beside the one that each process is writing.

    Raises UserError when the directory cannot be written.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self.limit = directory, limit
        with self._writable():
            directory.mkdir(parents=True, exist_ok=True)
            remove_temporaries(directory)

    def get(self, name: str) -> bytes | None:
        """The content of a block; None if it is not there or was damaged, which is said."""
        path = self.directory / name
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"data.cache_dir={self.directory}: {name} cannot be read: {error.strerror}") from error
        with suppress(OSError):  # of a cache that others filled, or that is mounted read-only: it then counts as older
            os.utime(path)
        content = stored[HEADER:]
        if stored[:HEADER] == _checksum(content):
            return content
        say(f"{path}: damaged; fetched again")
        self.forget(name)
        return None

    def put(self, name: str, content: bytes) -> None:
        """Keep a block, and drop those that were not used for longest where there is no room."""
        path = self.directory / name
        temporary = temporary_name(path)
        with self._writable():
            try:
                temporary.write_bytes(_checksum(content) + content)
                with self._room_for(HEADER + len(content)):
                    temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def forget(self, name: str) -> None:
        """Drop a block."""
        (self.directory / name).unlink(missing_ok=True)

    @contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        """Enter `size` bytes into the total and evict what exceeds the limit; holds the lock until the block ends."""
        with (self.directory / ".total").open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read(DIGITS)  # none in a new directory, or where its writer was killed
            total = size + (int(text) if text.isdecimal() else sum(each for _, each, _ in _blocks(self.directory)))
            if total > self.limit:
                total = self._evict(int(self.limit * FILL_AFTER_EVICTION) - size) + size
            file.truncate(0)
            file.write(str(total))
            file.flush()
            yield

    def _evict(self, target: int) -> int:
        """Drop the blocks used least recently until at most `target` bytes are left; returns how many are."""
        blocks = sorted(_blocks(self.directory))
        total = sum(size for _, size, _ in blocks)
        for _, size, path in blocks:
            if total <= target:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        return total

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"data.cache_dir={self.directory}: cannot be written: {error.strerror}") from error


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(HEADER, "little")


def _blocks(directory: Path) -> Iterator[tuple[int, int, str]]:
    """(when it was last used, bytes, path) of every block."""
    for entry in os.scandir(directory):
        try:
            if not entry.name.startswith("."):
                yield entry.stat().st_mtime_ns, entry.stat().st_size, entry.path
        except FileNotFoundError:
            continue
