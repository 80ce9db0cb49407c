"""A directory, a .zip or a .tar seen the same way: names of files, and the bytes of one.

What is listed is what is read: names in one form, links followed once and inside the root only, nothing twice.
"""

import hashlib
import os
import re
import stat
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple

from maep.data.images.text_files import composed
from maep.runtime.digests import digest
from maep.runtime.errors import UserError, fail

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# What file managers leave behind; hidden names besides.
CLUTTER = frozenset(
    ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini")
)
BLOCK = 512  # bytes: a tar consists of blocks of this size
MAX_LINKS = 40  # links from one to the next, as Linux follows at most
# Bytes of a path, or of what a tar says beside a member: Linux's paths have 4,096, attributes of macOS some thousand.
MAX_HEADER = 2**20
EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
# Files that a tar may list: compressed, a header of 512 bytes takes one, and a listed file some 600 in memory. The
# largest set in use as one tar, ImageNet's, has 1.33 million.
MAX_FILES = 1_500_000
PART = 2**20  # bytes of a file that are compared at a time


# Names that are in normal form as they stand, as nearly all are: archives list a million of them.
PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an archive's list.

    kind: `file`, `folder`, `link` or `special`. handle: what the archive reads it by. target: of a link, from the
    archive's top.
    """

    name: str
    kind: str
    handle: Any = None
    target: str = ""


@dataclass(frozen=True)
class Listing:
    """Entries by normal name, links replaced by what they lead to; names of folders."""

    files: dict[str, Entry]
    folders: set[str]


class Archive(ABC):
    """Files by name (relative, NFC, with `/`); hidden files are left out. Listed only when it is asked for names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hidden: set[str] = set()  # names that `listing` left out

    @cached_property
    def listing(self) -> Listing:
        """Everything in it.

        Raises UserError naming what is outside, special, listed twice, or a link to nothing, and for a damaged list.
        """
        try:
            normal = self._normal()
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  (links and what is listed twice are read: as in `read`)
            fail(f"{self.path}: cannot be listed: {_reason(error)}")
        return self._followed(normal)

    @cached_property
    def files(self) -> list[str]:
        """Sorted names of the files."""
        return sorted(self.listing.files)

    @cached_property
    def folders(self) -> list[str]:
        """Sorted names of the folders known to exist, empty ones among them."""
        above = {name.rsplit("/", depth)[0] for name in self.files for depth in range(1, name.count("/") + 1)}
        return sorted(above | self.listing.folders)

    @abstractmethod
    def _entries(self) -> Iterable[Entry]:
        """What it lists, names as it spells them, in any order."""

    @abstractmethod
    def _open(self, handle: Any) -> IO[bytes]:
        """One file, to be read from its start; raises what the format raises."""

    def _read(self, handle: Any, limit: int) -> bytes:
        """The first bytes of one file, at most `limit`, or all if that is negative; raises what the format raises."""
        with self._open(handle) as file:
            return file.read(limit)

    @abstractmethod
    def _size(self, handle: Any) -> int:
        """Bytes of one file."""

    def _handle(self, name: str) -> Any:
        """What a file is read by."""
        entry = self.listing.files.get(name)
        if entry is None:
            raise FileNotFoundError("no such file in it")
        return entry.handle

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The bytes of one file.

        limit: bytes that it may have. Raises UserError, naming it, if it has more or cannot be read.
        """
        try:
            handle = self._handle(name)
            size = self._size(handle)
            if limit is None or size <= limit:
                return self._read(handle, -1)
        except Exception as error:  # noqa: BLE001  (zipfile, tarfile and codecs have errors of their own)
            fail(f"{self.path}: {name}: cannot be read: {_reason(error)}")
        fail(f"{self.path}: {name}: {size} bytes; at most {limit} are read")

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of one file, at most `count`; none if it cannot be read."""
        try:
            return self._read(self._handle(name), count)
        except Exception:  # noqa: BLE001  (as in `read`; who reads the file is told then)
            return b""

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of some files, read in the order that costs least."""
        return {name: self.read(name) for name in self.in_cheap_order(names)}

    def on_disk(self, name: str) -> Path:
        """The path of one file of a directory, as the disk spells it: names are in one Unicode form, paths in any."""
        return Path(self._handle(name))

    def in_cheap_order(self, names: Iterable[str]) -> list[str]:
        """The names in the order in which reading them costs least."""
        return list(names)

    def _normal(self) -> Listing:
        """Names in one form, none twice; links still as they are."""
        files: dict[str, Entry] = {}
        folders = set()
        for entry in self._entries():
            name = normal_name(entry.name, self.path)
            if not name or self._leaves_out(name):
                continue
            if entry.kind == "special":
                fail(f"{self.path}: {name}: neither a file, a folder nor a link (pipe, socket, device); remove it")
            if entry.kind == "folder":
                folders.add(name)
            elif name not in files:
                files[name] = entry
            elif not self._same(files[name], entry):
                fail(f"{self.path}: {name}: listed twice, with different content; pack it again")
        return Listing(files, folders)

    def _leaves_out(self, name: str) -> bool:
        """Whether a name is hidden or of what file managers leave behind, which is remembered."""
        is_clutter = name.startswith(".") or "/." in name or not CLUTTER.isdisjoint(name.split("/"))
        self.hidden |= {name} if is_clutter else set()
        return is_clutter

    def _same(self, first: Entry, second: Entry) -> bool:
        """Of two entries of one name: the same bytes can mean one thing only, and archives packed twice have them."""
        if first.kind != "file" or second.kind != "file":
            return (first.kind, first.target) == (second.kind, second.target)
        sizes = self._size(first.handle), self._size(second.handle)
        return sizes[0] == sizes[1] and self._content(first.handle) == self._content(second.handle)

    def _content(self, handle: Any) -> str:
        """SHA-256 of a file, read in parts, as its size may be anything."""
        sha256 = hashlib.sha256()
        with self._open(handle) as file:
            while part := file.read(PART):
                sha256.update(part)
        return sha256.hexdigest()

    def _followed(self, listing: Listing) -> Listing:
        """With each link replaced by the file, or the files, that it leads to."""
        files = {name: entry for name, entry in listing.files.items() if entry.kind == "file"}
        targets = {name: self._target(name, listing) for name in listing.files.keys() - files.keys()}
        files |= {name: files[target] for name, target in targets.items() if target in files}
        real, folders = dict(files), set(listing.folders)
        below = {name.rsplit("/", depth)[0] for name in real for depth in range(1, name.count("/") + 1)} | folders
        for name, target in targets.items():
            if name in real:
                continue
            if target not in below or f"{name}/".startswith(f"{target}/"):
                problem = "to a folder around itself" if target in below else f"to {target}, which is not there"
                fail(f"{self.path}: {name}: a link {problem}; pack the files themselves")
            files |= {f"{name}{file[len(target) :]}": real[file] for file in real if file.startswith(f"{target}/")}
            folders.add(name)
        return Listing(files, folders)

    def _target(self, name: str, listing: Listing) -> str:
        """The name at the end of a chain of links."""
        target = name
        for _ in range(MAX_LINKS):
            entry = listing.files.get(target)
            if entry is None or entry.kind != "link":
                return target
            target = self._inside(name, entry.target)
        fail(f"{self.path}: {name}: a link that leads round in a circle")

    def _inside(self, name: str, target: str) -> str:
        """A link's target in normal form. Raises UserError if it is outside."""
        path = os.path.normpath(target)
        if path.startswith("/") or path.split("/")[0] == "..":
            fail(f"{self.path}: {name}: a link to {target}, outside of the archive")
        return normal_name(path, self.path)


def normal_name(name: str, path: Path) -> str:
    """A name in NFC, without `.` and doubled slashes; bytes that are no UTF-8 written as `\\xe9`.

    path: the archive, for the message. Raises UserError for an absolute name and one with `..`.
    """
    if PLAIN.fullmatch(name):
        return name
    text = composed(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or re.match(r"[A-Za-z]:[/\\]", text):
        fail(f"{path}: {text}: an absolute name; pack relative names")
    if ".." in parts:
        fail(f"{path}: {text}: a name that leads upwards (..); pack names below the top")
    return "/".join(parts)


class _Directory(Archive):
    def _entries(self) -> Iterator[Entry]:
        root = Path(os.path.realpath(self.path))
        # Folders to look into: where, under which name, and the real folders around; links in a linked one are refused.
        waiting: list[tuple[Path, str, tuple[Path, ...], bool]] = [(self.path, "", (root,), False)]
        while waiting:
            folder, prefix, around, linked = waiting.pop()
            for item in _scan(folder):
                name = f"{prefix}{item.name}"
                if self._leaves_out(name):
                    continue
                if item.is_file(follow_symlinks=False):  # nearly all are: no Path is made of a million names
                    yield Entry(name, "file", item.path)
                    continue
                real = self._real(Path(item.path), name, root) if item.is_symlink() else Path(item.path)
                mode = real.stat().st_mode if item.is_symlink() else None
                if item.is_dir(follow_symlinks=False) or (mode and stat.S_ISDIR(mode)):
                    if mode and (linked or real in around or real in root.parents):
                        fail(f"{self.path}: {name}: a link to a folder around it, or in a linked folder: {real}")
                    where = real if mode else around[-1] / item.name
                    waiting.append((Path(item.path), f"{name}/", (*around, where), linked or mode is not None))
                    yield Entry(name, "folder", Path(item.path))
                else:
                    yield Entry(name, "file" if mode and stat.S_ISREG(mode) else "special", item.path)

    def _real(self, path: Path, name: str, root: Path) -> Path:
        """What a symbolic link leads to."""
        try:
            real = path.resolve(strict=True)
        except RuntimeError:  # before Python 3.13
            fail(f"{self.path}: {name}: a link that leads round in a circle")
        except OSError as error:
            fail(f"{self.path}: {name}: a link to {path.readlink()}: {error.strerror}")
        if not real.is_relative_to(root):
            fail(f"{self.path}: {name}: a link to {real}, outside of {root}; copy the files, or name that as data.root")
        return real

    def _handle(self, name: str) -> Any:
        """Without listing, where the name is spelt as the disk spells it."""
        path = os.path.join(self.path, name)
        return path if os.path.isfile(path) else super()._handle(name)

    def _open(self, handle: Any) -> IO[bytes]:
        return open(handle, "rb")

    def _size(self, handle: Any) -> int:
        return os.stat(handle).st_size


def _scan(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as items:
            return list(items)
    except OSError as error:
        fail(f"{error.filename}: cannot be read: {error.strerror}")


KINDS = {stat.S_IFREG: "file", 0: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


class _Zip(Archive):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._zip = zipfile.ZipFile(path)

    def _entries(self) -> Iterator[Entry]:
        for info in self._zip.infolist():
            # The format allows `/` only; some packers for Windows write `\`.
            name = info.filename.replace("\\", "/")
            unix = info.create_system == 3
            kind = KINDS.get(stat.S_IFMT(info.external_attr >> 16), "special") if unix else "file"
            if name.endswith("/"):
                kind = "folder"
            target = self._read(info, MAX_HEADER).decode("utf-8", "surrogateescape") if kind == "link" else ""
            yield Entry(name, kind, info, f"{name.rpartition('/')[0]}/{target}".lstrip("/") if target else "")

    def _open(self, handle: Any) -> IO[bytes]:
        return self._zip.open(handle)

    def _size(self, handle: Any) -> int:
        return int(handle.file_size)


class _Member(tarfile.TarInfo):
    """A header of a tar. tarfile takes in what extends the next one whole, whatever size it says that it has."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        """As tarfile's own; raises tarfile.ReadError for an extension that is no name and no attributes."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in EXTENDED and member.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes; at most {MAX_HEADER}")
        return member


class _Span(NamedTuple):
    """Where the bytes of a tar's member are. sparse: the member itself, if it has holes."""

    offset: int
    size: int
    sparse: tarfile.TarInfo | None = None


def _entry_of(member: tarfile.TarInfo) -> Entry:
    span = _Span(member.offset_data, member.size, member if member.issparse() else None)
    if member.issym():
        above = "" if member.linkname.startswith("/") else f"{member.name.rpartition('/')[0]}/"
        return Entry(member.name, "link", span, f"{above}{member.linkname}".lstrip("/" if above else ""))
    if member.islnk():
        return Entry(member.name, "link", span, member.linkname)
    return Entry(member.name, "file" if member.isreg() else "folder" if member.isdir() else "special", span)


class _Tar(Archive):
    """Reads by offset; in a compressed tar, going back means reading from its start again."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._tar = tarfile.open(path, tarinfo=_Member)  # noqa: SIM115  (open as long as the archive is)
        self._members = list(self._listed())
        self._check_end()

    def _listed(self) -> Iterator[Entry]:
        """What each member says, kept in a third of the memory that tarfile's own list of them takes."""
        for number in count(1):
            member = self._tar.next()
            if member is None:
                return
            self._tar.members = []  # type: ignore[attr-defined]
            if number > MAX_FILES:
                fail(f"data.root={self.path}: lists more than {MAX_FILES} files; unpack it, and name the folder")
            yield _entry_of(member)

    def _check_end(self) -> None:
        """The list ends where zeros follow or nothing; tarfile also ends it, in silence, at a damaged header.

        And at the zeros that end the first of several tars in one file (`cat a.tar b.tar`), whatever comes after.
        """
        file = self._tar.fileobj
        assert file is not None
        file.seek(self._tar.offset)
        block = file.read(BLOCK)
        if block.strip(b"\0") or (block and len(block) < BLOCK):
            last = self._members[-1].name if self._members else "its start"
            raise tarfile.ReadError(f"damaged after {last}")
        if file.read(2 * tarfile.RECORDSIZE).strip(b"\0"):
            raise tarfile.ReadError(
                "more follows its end, as in tars put one after the other; unpack them into a folder"
            )

    def _entries(self) -> Iterable[Entry]:
        return self._members

    def _open(self, handle: Any) -> IO[bytes]:
        member = handle.sparse
        if member is None:
            member = tarfile.TarInfo()
            member.offset_data, member.size = handle.offset, handle.size
        file = self._tar.extractfile(member)
        assert file is not None  # only plain files are asked for
        return file

    def _read(self, handle: Any, limit: int) -> bytes:
        content = super()._read(handle, limit)
        if len(content) != (handle.size if limit < 0 else min(limit, handle.size)):
            raise tarfile.ReadError("the archive ends early")
        return content

    def _size(self, handle: Any) -> int:
        return int(handle.size)

    def in_cheap_order(self, names: Iterable[str]) -> list[str]:
        """By offset."""
        return sorted(names, key=lambda name: self._handle(name).offset)


def check_root(path: Path) -> None:
    """Raises UserError if there is no such path."""
    try:
        path.stat()
    except OSError as error:
        fail(f"data.root={path}: {error.strerror}; give a directory, .zip or .tar of images")


def fingerprint(path: Path) -> str:
    """Changes when what is in an archive changes, without reading it.

    Of a file: its size and modification time; of a directory: the names, sizes and times of its files. Raises UserError
    as `open_archive`.
    """
    check_root(path)
    if not path.is_dir():
        state = path.stat()
        return digest([state.st_size, state.st_mtime_ns])
    states = ((name, _stat(entry.handle)) for name, entry in sorted(_Directory(path).listing.files.items()))
    return digest([[name, state.st_size, state.st_mtime_ns] for name, state in states])


def folder_times(path: Path, few: int) -> dict[str, int]:
    """When each folder of a directory last changed, ns, by relative name; its own is `.`.

    {} for an archive, and where looking at folders saves nothing: at most `few` files, or more folders than that. A
    folder changes when a file in it is added, removed, renamed or replaced; not when one is written over.
    """
    if not path.is_dir():
        return {}
    folders, files = [path], 0
    for entry in _Directory(path)._entries():
        folders += [entry.handle] if entry.kind == "folder" else []
        files += entry.kind == "file"
    if files <= few or len(folders) > few:
        return {}
    times = {str(folder.relative_to(path)): _stat(folder).st_mtime_ns for folder in folders}
    return times if all(map(_is_unicode, times)) else {}


def _is_unicode(name: str) -> bool:
    """Whether a file's name can stand in a document; the bytes of others are kept as halves of pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _stat(path: Path | str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror}")


@lru_cache(maxsize=2)
def open_archive(path: Path) -> Archive:
    """The archive at `path`, opened once a process (`open_archive.cache_clear()` forgets it).

    Raises UserError if it is missing, damaged or of no known kind.
    """
    check_root(path)
    name = path.name.lower()
    kinds: dict[type[Archive], bool] = {
        _Directory: path.is_dir(),
        _Zip: path.is_file() and name.endswith(".zip"),
        _Tar: path.is_file() and name.endswith(TAR_SUFFIXES),
    }
    kind = next((kind for kind, fits in kinds.items() if fits), None)
    if kind is None:
        fail(f"data.root={path}: must be a directory, .zip or .tar ({', '.join(TAR_SUFFIXES)})")
    try:
        return kind(path)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  (a damaged archive raises anything: zlib, lzma, struct, Unicode …)
        fail(f"data.root={path}: cannot be read as {kind.__name__[1:].lower()}: {error or type(error).__name__}")
