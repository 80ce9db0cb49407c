"""Where shard sets lie and how their bytes are read: a directory, or an address that fsspec knows (http, s3, …).

Of a remote file only the blocks that hold what is asked for are read, kept in a `BlockCache`. A read that fails or
takes too long is made again, after longer and longer waits, and then named.
"""

import os
import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from maep.config.schema import Settings
from maep.runtime.console import say
from maep.runtime.errors import UserError, fail
from maep.storage.block_cache import BlockCache

OPEN_FILES = 64
CONNECTIONS = 8
WORTH_ANOTHER_TRY = (408, 425, 429)


@dataclass(frozen=True)
class Remote:
    """A directory at an address, such as http://host/shards or s3://bucket/shards."""

    address: str

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.address.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.address


Location = Path | Remote


def location(text: str) -> Location:
    """A path, also from file://…, or a remote directory, from any other protocol://…"""
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return Remote(text) if "://" in text else Path(text)


@dataclass(frozen=True)
class Reading:
    """How remote files are read; see the settings data.read_… and data.cache_…"""

    timeout: float
    attempts: int
    backoff: float
    cache_dir: Path
    cache_bytes: int
    cache_block: int

    @classmethod
    def of(cls, settings: Settings) -> "Reading":
        data = settings.data
        times = (data.read_timeout, data.read_attempts, data.read_backoff)
        return cls(*times, Path(data.cache_dir), data.cache_bytes, data.cache_block)


@dataclass(frozen=True)
class Extent:
    """`size` bytes from `start` of the file `name`, whose manifest entry is `known`: {"bytes", "sha256"}."""

    name: str
    known: dict[str, Any]
    start: int
    size: int

    @classmethod
    def whole(cls, name: str, known: dict[str, Any]) -> "Extent":
        """All of a file."""
        return cls(name, known, 0, known["bytes"])


class Storage(Protocol):
    """The files of one directory."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file. Raises UserError if that cannot be told."""

    def read_file(self, name: str) -> bytes:
        """All of a file that no manifest describes. Raises UserError if it cannot be read."""

    def read(self, extents: Sequence[Extent]) -> list[bytes]:
        """The bytes of some extents; fewer where a file is too short. Raises UserError if one cannot be read."""

    def forget(self, extent: Extent) -> bool:
        """Told that its bytes were wrong: True if another read may give others."""

    def close(self) -> None:
        """Give back what is open."""


def open_storage(place: Location, reading: Reading | None = None) -> Storage:
    """The files at a location; `reading` is needed for a remote one."""
    if isinstance(place, Path):
        return LocalStorage(place)
    if reading is None:
        fail(f"{place}: a directory is wanted here, not an address")
    return RemoteStorage(place, reading)


class LocalStorage:
    """A directory, also on a shared file system; keeps at most `OPEN_FILES` files open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: OrderedDict[str, int] = OrderedDict()

    def exists(self, name: str) -> bool:
        return (self.directory / name).is_file()

    def read_file(self, name: str) -> bytes:
        path = self.directory / name
        try:
            return path.read_bytes()
        except OSError as error:
            fail(f"{path}: cannot be read: {error.strerror}")

    def read(self, extents: Sequence[Extent]) -> list[bytes]:
        return [self._read(extent) for extent in extents]

    def _read(self, extent: Extent) -> bytes:
        try:
            return os.pread(self._descriptor(extent.name), extent.size, extent.start)
        except OSError as error:
            fail(f"{self.directory / extent.name}: cannot be read: {error.strerror}")

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            self._open[name] = os.open(self.directory / name, os.O_RDONLY)
            if len(self._open) > OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(name)
        return self._open[name]

    def forget(self, extent: Extent) -> bool:
        return False

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class RemoteStorage:
    """A remote directory, read over `CONNECTIONS` connections at a time, through a cache unless that has no bytes."""

    def __init__(self, place: Remote, reading: Reading) -> None:
        self.place, self.reading = place, reading
        self._pool = ThreadPoolExecutor(CONNECTIONS)

    @cached_property
    def _cache(self) -> BlockCache | None:
        return BlockCache(self.reading.cache_dir, self.reading.cache_bytes) if self.reading.cache_bytes else None

    @cached_property
    def _filesystem(self) -> Any:
        import fsspec  # only now: a local set is read without

        protocol = self.place.address.partition("://")[0]
        try:
            return fsspec.filesystem(protocol)
        except ValueError:
            fail(f"{self.place}: unknown protocol {protocol}; such as http, https, s3 or file")
        except ImportError as error:
            extra = "; pip install 'maep[s3]'" if protocol == "s3" else ""
            fail(f"{self.place}: {protocol} needs a package that is not installed: {error}{extra}")

    def exists(self, name: str) -> bool:
        try:
            self._attempts(name, 0, 1)
        except FileNotFoundError:
            return False
        return True

    def read_file(self, name: str) -> bytes:
        return self._fetch(name)

    def read(self, extents: Sequence[Extent]) -> list[bytes]:
        if self._cache is None:
            return list(self._pool.map(lambda e: self._fetch(e.name, e.start, e.start + e.size), extents))
        wanted = {(e.name, block): e.known for e in extents for block in self._blocks_of(e)}
        held = {key: self._cache.get(_block_name(known, key[1])) for key, known in wanted.items()}
        missing = [key for key, content in held.items() if content is None]
        for found in self._pool.map(lambda run: self._fetch_blocks(run, wanted[run[0]]), _runs(missing)):
            held.update(found)
        return [self._cut(extent, held) for extent in extents]

    def _blocks_of(self, extent: Extent) -> range:
        size = self.reading.cache_block
        return range(extent.start // size, -(-(extent.start + extent.size) // size))

    def _cut(self, extent: Extent, held: dict[tuple[str, int], bytes | None]) -> bytes:
        blocks = self._blocks_of(extent)
        start = extent.start - blocks.start * self.reading.cache_block
        return b"".join(held[extent.name, block] or b"" for block in blocks)[start : start + extent.size]

    def _fetch_blocks(self, run: list[tuple[str, int]], known: dict[str, Any]) -> dict[tuple[str, int], bytes]:
        """Neighbouring blocks of one file in one request, kept in the cache."""
        assert self._cache is not None
        name, size = run[0][0], self.reading.cache_block
        first = run[0][1] * size
        content = self._fetch(name, first, min((run[-1][1] + 1) * size, known["bytes"]))
        found = {key: content[key[1] * size - first :][:size] for key in run}
        for key, block in found.items():
            self._cache.put(_block_name(known, key[1]), block)
        return found

    def _fetch(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        try:
            return self._attempts(name, start, end)
        except FileNotFoundError:
            fail(f"{self.place / name}: no such file")

    def _attempts(self, name: str, start: int | None, end: int | None) -> bytes:
        """All bytes of a file or those of [start, end). Raises FileNotFoundError, or UserError after the last try."""
        address = str(self.place / name)
        for attempt in range(1, self.reading.attempts + 1):
            try:
                content = self._request(address, start, end)
                if end is not None:
                    _check_length(address, len(content), end - (start or 0))
                return content
            except (FileNotFoundError, UserError):
                raise
            except Exception as error:  # noqa: BLE001  (every file system has errors of its own)
                told = _reason(error, self.reading.timeout)
                if attempt == self.reading.attempts or _is_final(error):
                    fail(f"{address}: cannot be read (attempt {attempt} of {self.reading.attempts}): {told}")
                say(f"{address}: {told}; attempt {attempt} of {self.reading.attempts}")
            wait = self.reading.backoff * 2 ** (attempt - 1)
            time.sleep(wait * random.SystemRandom().uniform(0.5, 1))
        raise AssertionError("at least one attempt")

    def _request(self, address: str, start: int | None, end: int | None) -> bytes:
        """One request, ended after the time limit where the file system can be interrupted."""
        filesystem = self._filesystem
        if not filesystem.async_impl:
            return filesystem.cat_file(address, start=start, end=end)
        from fsspec.asyn import sync

        limit = self.reading.timeout
        return sync(filesystem.loop, filesystem._cat_file, address, start=start, end=end, timeout=limit)

    def forget(self, extent: Extent) -> bool:
        for block in self._blocks_of(extent) if self._cache else ():
            self._cache.forget(_block_name(extent.known, block))  # type: ignore[union-attr]
        return True

    def close(self) -> None:
        self._pool.shutdown(wait=False)


def _block_name(known: dict[str, Any], block: int) -> str:
    """By content, not address: a set that was moved stays cached, one that was made anew is not mixed with the old."""
    return f"{known['sha256'][:32]}-{block:06d}"


def _runs(keys: Sequence[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    """(file, block) keys as runs of neighbours."""
    grouped = groupby(enumerate(sorted(keys)), lambda place: (place[1][0], place[1][1] - place[0]))
    return [[key for _, key in group] for _, group in grouped]


def _check_length(address: str, came: int, wanted: int) -> None:
    if came > wanted:
        fail(f"{address}: {came} bytes came instead of {wanted}; the server must answer requests for byte ranges")
    if came < wanted:
        raise OSError(f"{came} bytes came instead of {wanted}")


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_final(error: Exception) -> bool:
    """Whether another try would be in vain: refused, or a client error of HTTP."""
    status = getattr(error, "status", 500)
    return isinstance(error, PermissionError) or (400 <= status < 500 and status not in WORTH_ANOTHER_TRY)
