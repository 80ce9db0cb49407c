"""Where shard sets lie and how their bytes are read: a directory, or an address that fsspec knows (http, s3, …).

Of a remote file only the blocks that hold what is asked for are read, kept in a `BlockCache`. A read that fails or
takes too long is made again, after longer and longer waits, and then named.
"""

import os
import random
import resource
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from maep.config.data_settings import DataSettings
from maep.runtime.console import say
from maep.runtime.errors import UserError, fail
from maep.runtime.plain_files import descriptor_of, read_bytes
from maep.runtime.text import secret_problem
from maep.storage.block_cache import BlockCache
from maep.storage.json_files import LIMIT
from maep.storage.manifests import FileEntry

MOST_FILES = 200_000  # pairs of a hundred million samples; where the system sets no limit
OWN_SHARE = 16  # a set that comes when others hold all that is kept open has this part of it besides
CONNECTIONS = 8  # requests under way at a time: a store answers one in tens of ms, a batch needs dozens of blocks
WORTH_ANOTHER_TRY = (408, 425, 429)  # of HTTP's client errors: request timeout, too early, too many requests
CHUNK = 2**18  # bytes of a body that are looked at together
JITTER = (0.5, 1.0)  # of the waiting time, drawn: readers that failed together do not ask again together


@cache
def files_kept_open() -> int:
    """Of this process's sets together: nine tenths of what it may have, for which it asks for all that it is granted.

    Shells begin with 1,024 (`ulimit -Sn`), fewer than ImageNet has shards, and most systems grant a hundred times as
    many (`ulimit -Hn`). Others have the rest, 256 of them or three quarters where a tenth is less. With more shards, a
    sample at random may have to open its own: that takes a tenth of reading it, and asks a shared file system's server.
    """
    limit, granted = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS grants no end of them, and refuses it
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, granted))
        limit = granted
    if limit == resource.RLIM_INFINITY:
        return MOST_FILES
    return max(1, min(max(limit // 4, min(limit * 9 // 10, limit - 256)), MOST_FILES))


@dataclass(frozen=True)
class Remote:
    """A directory at an address, such as http://host/shards or s3://bucket/shards."""

    address: str

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.address.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.address


Location = Path | Remote
BlockKey = tuple[str, int]  # file name, number of the block in it


def location(text: Location | str) -> Location:
    """A path, also from file://…, or a remote directory, from any other protocol://…

    Raises UserError for an address with secrets in it: what was read from where is written down, and shown.
    """
    if problem := secret_problem(str(text)):
        fail(f"{text}: {problem}")
    if not isinstance(text, str):
        return text
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return Remote(text) if "://" in text else Path(text).expanduser()


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
    def of(cls, data: DataSettings) -> "Reading":
        """As the settings of a data set say."""
        times = (data.read_timeout, data.read_attempts, data.read_backoff)
        return cls(*times, Path(data.cache_dir), data.cache_bytes, data.cache_block)


class Extent(NamedTuple):
    """`size` bytes from `start` of the file `name`, whose entry in the manifest is `entry`."""

    name: str
    entry: FileEntry
    start: int
    size: int

    @classmethod
    def whole(cls, name: str, entry: FileEntry) -> "Extent":
        """All of a file."""
        return cls(name, entry, 0, entry.bytes)


class Storage(Protocol):
    """The files of one directory."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file. Raises UserError if it cannot be asked."""

    def read_file(self, name: str) -> bytes:
        """All of a file that no manifest describes. Raises UserError if it cannot be read."""

    def read(self, extents: Sequence[Extent]) -> list[bytes]:
        """The bytes of some extents; fewer where a file is too short. Raises UserError if one cannot be read."""

    def forget(self, extent: Extent) -> bool:
        """Drop what is kept of it, since its bytes were wrong: True if another read may give others."""

    def close(self) -> None:
        """Give back what is open."""


def open_storage(directory: Location, reading: Reading | None = None) -> Storage:
    """The files at a location; `reading` is needed for a remote one. Raises UserError as `location`."""
    directory = location(directory)
    if isinstance(directory, Path):
        return LocalStorage(directory)
    if reading is None:
        fail(f"{directory}: expected a directory here, not an address")
    return RemoteStorage(directory, reading)


_KEPT: set[int] = set()  # descriptors of all local sets of this process; a set, since threads may add at a time


class LocalStorage:
    """A directory, also on a shared file system; all together keep about `files_kept_open` files open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._prefix = f"{directory}{os.sep}"  # text: with many thousand shards a sample often opens its file
        self._open: OrderedDict[str, int] = OrderedDict()

    def exists(self, name: str) -> bool:
        return (self.directory / name).is_file()

    def read_file(self, name: str) -> bytes:
        return read_bytes(self.directory / name, LIMIT)

    def read(self, extents: Sequence[Extent]) -> list[bytes]:
        return [self._read(extent) for extent in extents]

    def _read(self, extent: Extent) -> bytes:
        try:
            return _pread(self._descriptor(extent.name), extent.size, extent.start)
        except OSError as error:
            fail(f"{self.directory / extent.name}: cannot be read: {error.strerror}")

    def _descriptor(self, name: str) -> int:
        descriptor = self._open.get(name)
        if descriptor is None:
            while len(self._open) >= self._room():
                self._close_first()
            descriptor = self._open[name] = descriptor_of(self._prefix + name)
            _KEPT.add(descriptor)
        return descriptor

    def _room(self) -> int:
        """How many files it may keep open: what others leave of all, and a share of its own in any case."""
        others = len(_KEPT) - len(self._open)
        return max(1, files_kept_open() // OWN_SHARE, files_kept_open() - others)

    def _close_first(self) -> None:
        """The one opened first: of samples at random it is as good as the one used last, which costs a note a read."""
        descriptor = self._open.popitem(last=False)[1]
        _KEPT.discard(descriptor)
        os.close(descriptor)

    def forget(self, extent: Extent) -> bool:
        return False

    def close(self) -> None:
        while self._open:
            self._close_first()


def _pread(descriptor: int, size: int, start: int) -> bytes:
    """`size` bytes from `start`, fewer only where the file ends: one call to the system gives 2 GiB at most."""
    parts, done = [], 0
    while done < size and (part := os.pread(descriptor, size - done, start + done)):
        parts.append(part)
        done += len(part)
    return b"".join(parts)  # no copy of a single one


class RemoteStorage:
    """A remote directory, read over `CONNECTIONS` connections at a time, through a cache unless that has no bytes."""

    def __init__(self, remote: Remote, reading: Reading) -> None:
        self.remote, self.reading = remote, reading
        self._pool = ThreadPoolExecutor(CONNECTIONS)

    @cached_property
    def _cache(self) -> BlockCache | None:
        return BlockCache(self.reading.cache_dir, self.reading.cache_bytes) if self.reading.cache_bytes else None

    @cached_property
    def _filesystem(self) -> Any:
        import fsspec  # only now: a local set is read without

        protocol = self.remote.address.partition("://")[0]
        try:
            return fsspec.filesystem(protocol)
        except ValueError:
            fail(f"{self.remote}: unknown protocol {protocol}; such as http, https, s3 or file")
        except ImportError as error:
            extra = "; pip install 'maep[s3]'" if protocol == "s3" else ""
            fail(f"{self.remote}: {protocol} needs a package that is not installed: {error}{extra}")

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
        entries = {(e.name, block): e.entry for e in extents for block in self._blocks_of(e)}
        blocks = {key: self._cache.get(_block_name(entry, key[1])) for key, entry in entries.items()}
        missing = [key for key, content in blocks.items() if content is None]
        for fetched in self._pool.map(lambda run: self._fetch_blocks(run, entries[run[0]]), _runs(missing)):
            blocks.update(fetched)
        return [self._cut(extent, blocks) for extent in extents]

    def _blocks_of(self, extent: Extent) -> range:
        size = self.reading.cache_block
        return range(extent.start // size, -(-(extent.start + extent.size) // size))

    def _cut(self, extent: Extent, blocks: Mapping[BlockKey, bytes | None]) -> bytes:
        numbers = self._blocks_of(extent)
        start = extent.start - numbers.start * self.reading.cache_block
        return b"".join(blocks[extent.name, number] or b"" for number in numbers)[start : start + extent.size]

    def _fetch_blocks(self, run: Sequence[BlockKey], entry: FileEntry) -> dict[BlockKey, bytes]:
        """Neighbouring blocks of one file in one request, kept in the cache."""
        assert self._cache is not None
        name, size = run[0][0], self.reading.cache_block
        first = run[0][1] * size
        content = self._fetch(name, first, min((run[-1][1] + 1) * size, entry.bytes))
        blocks = {key: content[key[1] * size - first :][:size] for key in run}
        for key, block in blocks.items():
            self._cache.put(_block_name(entry, key[1]), block)
        return blocks

    def _fetch(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        try:
            return self._attempts(name, start, end)
        except FileNotFoundError:
            fail(f"{self.remote / name}: no such file")

    def _attempts(self, name: str, start: int | None, end: int | None) -> bytes:
        """All bytes of a file or those of [start, end). Raises FileNotFoundError, or UserError after the last try."""
        address = str(self.remote / name)
        for attempt in range(1, self.reading.attempts + 1):
            try:
                content = self._request(address, start, end)
                if end is not None:
                    _check_length(address, len(content), end - (start or 0))
                return content
            except (FileNotFoundError, UserError):
                raise
            except Exception as error:  # noqa: BLE001  (every file system has errors of its own)
                reason = _reason(error, self.reading.timeout)
                if attempt == self.reading.attempts or _is_final(error):
                    fail(f"{address}: cannot be read (attempt {attempt} of {self.reading.attempts}): {reason}")
                say(f"{address}: {reason}; attempt {attempt} of {self.reading.attempts}")
            wait = self.reading.backoff * 2 ** (attempt - 1)
            time.sleep(wait * random.SystemRandom().uniform(*JITTER))
        raise AssertionError("at least one attempt")

    def _request(self, address: str, start: int | None, end: int | None) -> bytes:
        """One request, ended after the time limit where the file system can be interrupted."""
        filesystem = self._filesystem
        if not filesystem.async_impl:
            return filesystem.cat_file(address, start=start, end=end)
        from fsspec.asyn import sync

        read = _http_body if hasattr(filesystem, "set_session") and hasattr(filesystem, "encode_url") else _whole_body
        return sync(filesystem.loop, read, filesystem, address, start, end, timeout=self.reading.timeout)

    def forget(self, extent: Extent) -> bool:
        for block in self._blocks_of(extent) if self._cache else ():
            self._cache.forget(_block_name(extent.entry, block))  # type: ignore[union-attr]
        return True

    def close(self) -> None:
        self._pool.shutdown(wait=False)


async def _whole_body(filesystem: Any, address: str, start: int | None, end: int | None) -> bytes:
    content: bytes = await filesystem._cat_file(address, start=start, end=end)
    return content


async def _http_body(filesystem: Any, address: str, start: int | None, end: int | None) -> bytes:
    """A file over HTTP, or its bytes [start, end), read no further than it should go: a body may have no end."""
    limit = LIMIT if end is None else end - (start or 0)
    session = await filesystem.set_session()
    # Not compressed: a body of a few bytes could become gigabytes before it is seen.
    headers = {"Accept-Encoding": "identity"} | ({} if end is None else {"Range": f"bytes={start or 0}-{end - 1}"})
    async with session.get(filesystem.encode_url(address), headers=headers) as response:
        filesystem._raise_not_found_for_status(response, address)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            fail(f"{address}: came compressed, which was not asked for; the server must send files as they are")
        if (response.content_length or 0) > limit:
            _check_length(address, response.content_length, limit)
        content = bytearray()
        async for part in response.content.iter_chunked(CHUNK):
            content += part
            if len(content) > limit:
                _check_length(address, len(content), limit)
        return bytes(content)


def _block_name(entry: FileEntry, block: int) -> str:
    """By content, not address: a set that was moved stays cached, one that was made anew is not mixed with the old."""
    return f"{entry.sha256[:32]}-{block:06d}"


def _runs(keys: Sequence[BlockKey]) -> list[list[BlockKey]]:
    """The keys as runs of neighbours in one file."""
    grouped = groupby(enumerate(sorted(keys)), lambda item: (item[1][0], item[1][1] - item[0]))
    return [[key for _, key in group] for _, group in grouped]


def _check_length(address: str, size: int, expected: int) -> None:
    if size > expected:
        fail(f"{address}: {size} bytes came instead of {expected}; the server must answer requests for byte ranges")
    if size < expected:
        raise OSError(f"{size} bytes came instead of {expected}")


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_final(error: Exception) -> bool:
    """Whether another try would be in vain: refused, or a client error of HTTP."""
    status = getattr(error, "status", 500)
    return isinstance(error, PermissionError) or (400 <= status < 500 and status not in WORTH_ANOTHER_TRY)
