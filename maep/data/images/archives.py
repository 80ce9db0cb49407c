"""A directory, a .zip or a .tar seen the same way: names of files, and the bytes of one."""

import os
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path

from maep.runtime.errors import fail

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def _is_clutter(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


class Archive(ABC):
    """Files by name (relative, with `/`); hidden files are left out. Listed only when it is asked for names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def files(self) -> list[str]:
        """Sorted names of the files."""
        return sorted(name for name in self._list()[0] if not _is_clutter(name))

    @cached_property
    def folders(self) -> list[str]:
        """Sorted names of the folders known to exist, empty ones among them."""
        above = {name.rsplit("/", depth)[0] for name in self.files for depth in range(1, name.count("/") + 1)}
        return sorted(above | {name for name in self._list()[1] if name and not _is_clutter(name)})

    @abstractmethod
    def _list(self) -> tuple[list[str], list[str]]:
        """Names of files and of folders, in any order."""

    @abstractmethod
    def _read(self, name: str) -> bytes:
        """The bytes of one file; raises whatever the format raises."""

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises UserError, naming it, if it cannot be read."""
        try:
            return self._read(name)
        except Exception as error:  # noqa: BLE001  (zipfile, tarfile and codecs have errors of their own)
            fail(f"{self.path}: {name}: cannot be read: {getattr(error, 'strerror', None) or error}")

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of some files, read in the order that costs least."""
        return {name: self.read(name) for name in names}


class _Directory(Archive):
    def _list(self) -> tuple[list[str], list[str]]:
        return self._listing

    @cached_property
    def _listing(self) -> tuple[list[str], list[str]]:
        files: list[str] = []
        folders: list[str] = []
        for folder, below, names in os.walk(self.path, followlinks=True, onerror=_refuse):
            prefix = "" if folder == str(self.path) else f"{Path(folder).relative_to(self.path).as_posix()}/"
            files += [prefix + name for name in names]
            folders += [prefix + name for name in below]
        return files, folders

    def _read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class _Zip(Archive):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._zip = zipfile.ZipFile(path)

    def _list(self) -> tuple[list[str], list[str]]:
        names = self._zip.namelist()
        folders = [name.rstrip("/") for name in names if name.endswith("/")]
        return [name for name in names if not name.endswith("/")], folders

    def _read(self, name: str) -> bytes:
        return self._zip.read(name)


class _Tar(Archive):
    """Reads by offset; in a compressed tar, going back means reading from its start again."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._tar = tarfile.open(path)  # noqa: SIM115  (open as long as the archive is)
        self._members = {os.path.normpath(member.name): member for member in self._tar}

    def _list(self) -> tuple[list[str], list[str]]:
        files = [name for name, member in self._members.items() if member.isreg()]
        return files, [name for name, member in self._members.items() if member.isdir()]

    def _read(self, name: str) -> bytes:
        file = self._tar.extractfile(self._members[name])
        content = file.read() if file else b""
        if len(content) != self._members[name].size:
            raise tarfile.ReadError("the archive ends early")
        return content

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        return super().read_many(sorted(names, key=lambda name: self._members[name].offset))


def _refuse(error: OSError) -> None:
    fail(f"{error.filename}: cannot be read: {error.strerror}")


def state_of(path: Path) -> tuple[int, int]:
    """(bytes, modification time in ns) of an archive file; (0, 0) for a directory.

    Raises UserError if there is no such path.
    """
    try:
        stat = path.stat()
    except OSError as error:
        fail(f"data.root={path}: {error.strerror}; give a directory, .zip or .tar of images")
    return (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2)
def open_archive(path: Path) -> Archive:
    """The archive at `path`, opened once a process (`open_archive.cache_clear()` forgets it).

    Raises UserError if it is missing, damaged or of no known kind.
    """
    state_of(path)
    name = path.name.lower()
    kinds: dict[type[Archive], bool] = {
        _Directory: path.is_dir(),
        _Zip: name.endswith(".zip"),
        _Tar: name.endswith(TAR_SUFFIXES),
    }
    kind = next((kind for kind, fits in kinds.items() if fits), None)
    if kind is None:
        fail(f"data.root={path}: must be a directory, .zip or .tar ({', '.join(TAR_SUFFIXES)})")
    try:
        return kind(path)
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        fail(f"data.root={path}: cannot be read as {kind.__name__[1:].lower()}: {error}")
