"""Whether the files of a local shard set are those of its manifest: all of them read, or what a start can afford.

    <set>/
    .<set>.verified.json      beside it: the stamp that each file had when it was read through and found whole

A start looks at every file's size and stamp. It reads no file that has the stamp of one that was whole; what else
there is, it reads if that takes no time, and says so if not. Every sample is checked by its CRC whenever it is read,
so a stamp that lies delays the finding of damage, and hides none.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from maep.data.shard_manifest import ShardManifest
from maep.runtime.console import say
from maep.runtime.errors import UserError
from maep.storage.atomic import sha256_file
from maep.storage.documents import Document
from maep.storage.manifests import FileEntry
from maep.storage.sealed import MANIFEST

READ_AT_START = 2**28  # bytes: half a second of SHA-256 on one core, and all of CIFAR-10


@dataclass(frozen=True)
class VerifiedFiles(Document):
    """manifest: SHA-256 of the set's. stamps: `{name: stamp}` of the files that had the manifest's SHA-256.

    Of a set under way the key of its `HashedFiles`, and with each stamp the SHA-256 that the file had.
    """

    SELF_CHECKED: ClassVar[bool] = True
    DIGEST_SINCE: ClassVar[int | None] = 1

    manifest: str
    stamps: Mapping[str, str] = field(default_factory=dict)


def stamp_of(status: os.stat_result) -> str:
    """What a file is known by without reading it: inode, bytes, and nanoseconds of its last change."""
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"


def record_path(directory: Path) -> Path:
    """Where it is kept which files of a set were whole."""
    return beside(directory, "verified.json")


def beside(directory: Path, what: str) -> Path:
    """The hidden file next to a set, outside of what its manifest covers, that keeps something derived from it."""
    place = Path(os.path.realpath(directory))
    return place.parent / f".{place.name}.{what}"


def look_at_file(path: Path, entry: FileEntry) -> tuple[str, str | None]:
    """A file's stamp, and what is wrong with it as far as its size and kind tell."""
    try:
        status = path.stat()
    except OSError as error:
        return "", f"{path}: {error.strerror}, but {MANIFEST} lists it"
    if not stat.S_ISREG(status.st_mode):
        return "", f"{path}: is no regular file (a directory, pipe or device), but {MANIFEST} lists it"
    size = status.st_size
    return stamp_of(status), f"{path}: {size} bytes, its manifest says {entry.bytes}" if size != entry.bytes else None


def look_at(directory: Path, manifest: ShardManifest) -> tuple[dict[str, str], dict[str, str]]:
    """`{name: stamp}` of the files that may be whole, and `{name: problem}` of the others; reads none."""
    stamps: dict[str, str] = {}
    problems: dict[str, str] = {}
    for name, entry in manifest.files.items():
        stamp, problem = look_at_file(directory / name, entry)
        if problem:
            problems[name] = problem
        else:
            stamps[name] = stamp
    return stamps, problems


def problems_at_start(directory: Path, manifest: ShardManifest, manifest_digest: str) -> list[str]:
    """What is wrong with a set, as far as a start can tell: sizes, and the content of files nobody has verified.

    manifest_digest: SHA-256 of the manifest's file. Where the files to read are too large, one line says so.
    """
    stamps, problems = look_at(directory, manifest)
    verified = _verified(directory, manifest_digest)
    unknown = [name for name, stamp in stamps.items() if verified.get(name) != stamp]
    size = sum(manifest.files[name].bytes for name in unknown)
    if size <= READ_AT_START:
        problems |= _read_through(directory, manifest, manifest_digest, stamps, unknown)
        return list(problems.values())
    since = "changed since" if verified else "not"
    say(
        f"{directory}: {len(unknown)} of {len(manifest.files)} files, {size / 1e9:.1f} GB, were {since} verified; "
        f"samples are checked as they are read, `maep shards verify {directory}` checks all at once"
    )
    return list(problems.values())


def all_problems(directory: Path, manifest: ShardManifest, manifest_digest: str) -> list[str]:
    """Everything that is wrong with a set: reads all of its files, and keeps which ones were whole."""
    stamps, problems = look_at(directory, manifest)
    problems |= _read_through(directory, manifest, manifest_digest, stamps, stamps)
    return list(problems.values())


def _read_through(
    directory: Path, manifest: ShardManifest, manifest_digest: str, stamps: Mapping[str, str], names: Iterable[str]
) -> dict[str, str]:
    """`{name: problem}` of some files, which are read; all that have a stamp and no problem are kept as whole."""
    names = list(names)
    problems = {
        name: f"{directory / name}: altered (SHA-256 differs from its manifest)"
        for name in names
        if sha256_file(directory / name) != manifest.files[name].sha256
    }
    if names:
        _keep(directory, manifest_digest, {name: stamp for name, stamp in stamps.items() if name not in problems})
    return problems


class HashedFiles:
    """The SHA-256 of files of a set that is still being made, each hashed once as long as it keeps its stamp.

    key: what the set is to be, in place of the manifest that it has not yet; under it they are kept in the same record
    for later processes. Of two that keep at a time one may lose what the other has found, and hashes it once more.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self.directory, self.key = directory, key
        self._marks = dict(_verified(directory, key))

    def sha256(self, name: str) -> str:
        """Of a file, which is read. Raises UserError if it cannot be."""
        path = self.directory / name
        stamp = stamp_of(path.stat())  # before it is read: what changes meanwhile has another one
        digest = sha256_file(path)
        self._marks[name] = f"{stamp} {digest}"
        return digest

    def has(self, name: str, sha256: str) -> bool:
        """Whether there is a file with that SHA-256."""
        try:
            status = (self.directory / name).stat()
        except OSError:
            return False
        if self._marks.get(name) == f"{stamp_of(status)} {sha256}":
            return True
        return stat.S_ISREG(status.st_mode) and self.sha256(name) == sha256

    def keep(self) -> None:
        """For later processes, beside what others have kept."""
        _keep(self.directory, self.key, {**_verified(self.directory, self.key), **self._marks})


def remember_as_whole(directory: Path, manifest: ShardManifest, manifest_digest: str) -> None:
    """Keep that all files of a set are whole, for whoever has just hashed them; of a small set a start finds out."""
    if sum(entry.bytes for entry in manifest.files.values()) > READ_AT_START:
        _keep(directory, manifest_digest, look_at(directory, manifest)[0])


def _keep(directory: Path, manifest_digest: str, stamps: Mapping[str, str]) -> None:
    with suppress(UserError):  # beside a set that others own it cannot be written; each start looks for itself then
        VerifiedFiles(manifest_digest, stamps).write(record_path(directory))


def _verified(directory: Path, manifest_digest: str) -> Mapping[str, str]:
    """`{name: stamp}` of the files that were whole; none if that was another set, or cannot be read."""
    path = record_path(directory)
    try:
        record = VerifiedFiles.read(path) if path.is_file() else None
    except UserError as error:
        say(f"{error}; not believed")
        return {}
    return record.stamps if record and record.manifest == manifest_digest else {}
