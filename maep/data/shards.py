"""Shard sets: images in WebDataset tar files with an index for random access.

    train/
      shard-00000.tar           members 000000000.cls, 000000000.png, 000000001.cls, …
      shard-00000.index.json    where each image lies in the tar, its checksum and label, and a digest of the pixels
      …
      manifest.json             what the set is, its shards, sizes and SHA-256 of all files; written last

The number in a member's name is its sample index in the set. Any WebDataset reader can stream the tar files;
`ShardSet` reads single samples by position, which an exact resume needs.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from maep.data.image_encoding import SUFFIXES, decode_image, encode_image
from maep.data.sample_table import SampleTable, parts_of
from maep.data.shard_manifest import ShardEntry, ShardIndex, ShardManifest, read_shard_manifest
from maep.data.tar_members import end_of_tar, member_header, padding
from maep.data.verification import all_problems, beside, look_at, look_at_file, problems_at_start, remember_as_whole
from maep.runtime.console import say
from maep.runtime.digests import digest
from maep.runtime.errors import UserError, fail
from maep.storage.atomic import atomic_file, read_json, write_json
from maep.storage.json_files import LIMIT, parse_json
from maep.storage.remote import Extent, Location, Reading, Storage, location, open_storage
from maep.storage.sealed import MANIFEST, file_entries, seal_directory

if TYPE_CHECKING:  # a run that is finished says so without importing torch
    from torch import Tensor

INDEXES_AT_ONCE = 256  # held as text at a time: some 10 MB
PACKED_FROM = 100_000  # samples: the indexes of fewer are parsed in 50 ms, which is not worth a file
READ_AT_ONCE = 256  # samples whose encoded bytes are held at a time: some 40 MB of ImageNet's
Check = Callable[[bytes], bool]


def to_float(images: "Tensor") -> "Tensor":
    """uint8 in 0..255 to float32 in [0, 1], any shape."""
    return images.float() / 255


def to_uint8(images: "Tensor") -> "Tensor":
    """Float in [0, 1] to the nearest of the 256 stored levels (uint8), any shape; clips what lies outside."""
    return (images.clamp(0, 1) * 255).round().byte()


def shard_name(number: int) -> str:
    """File name of the shard with this number (0-based)."""
    return f"shard-{number:05d}.tar"


def index_of(shard: Path) -> Path:
    """Path of the index beside a shard. It is written after the shard, so where it exists, both are whole."""
    return shard.with_suffix(".index.json")


class ShardWriter:
    """Writes one shard and its index; use as a context manager.

    Both files appear under their final names when the block ends well, neither when it does not. The same
    samples give the same bytes. Raises UserError when the directory cannot be written or the disk is full.
    """

    def __init__(self, path: Path, encoding: str = "png") -> None:
        """path: …/shard-NNNNN.tar; encoding: `png`, `webp` or `raw`."""
        self.path, self.encoding = Path(path), encoding
        self._labels: list[int] = []
        self._first: int | None = None
        self._content = hashlib.sha256()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._temporary = stack.enter_context(atomic_file(self.path))
            self._file = stack.enter_context(self._temporary.open("wb"))
            self._written = 0  # bytes
            self._offsets: list[int] = []
            self._sizes: list[int] = []
            self._checksums: list[int] = []
            self._stack = stack.pop_all()
        return self

    def write(self, index: int, image: np.ndarray, label: int) -> None:
        """Append a sample. index: its sample index, one more than the last; image: uint8 [H, W, 3].

        Raises ValueError for another shape or type, or an index out of sequence.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"sample {index}: {image.dtype} {image.shape}, expected uint8 [H, W, 3]")
        self._first = index if self._first is None else self._first
        if index != self._first + len(self._labels):
            raise ValueError(f"sample {index}: expected {self._first + len(self._labels)}")
        encoded = encode_image(image, self.encoding)
        # In the order of their extensions, as webdataset writes a sample.
        self._append(f"{index:09d}.cls", str(label).encode())
        self._offsets.append(self._append(f"{index:09d}.{SUFFIXES[self.encoding]}", encoded))
        self._sizes.append(len(encoded))
        self._checksums.append(zlib.crc32(encoded))
        self._labels.append(int(label))
        self._content.update(np.asarray([index, label, *image.shape], dtype="<i8").tobytes())
        self._content.update(image.tobytes())

    def _append(self, name: str, content: bytes) -> int:
        """Write a member; returns where its content starts."""
        header, end = member_header(name, len(content)), padding(len(content))
        self._file.write(header + content + end)
        start = self._written + len(header)
        self._written = start + len(content) + len(end)
        return start

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
            return
        self._stack.__exit__(kind, error, trace)

    def _finish(self) -> None:
        with self._stack:
            self._file.write(end_of_tar(self._written))
        index = ShardIndex(
            shard=self.path.name, first=self._first or 0, count=len(self._labels), encoding=self.encoding,
            content=self._content.hexdigest(), offsets=np.asarray(self._offsets), bytes=np.asarray(self._sizes),
            crc32=np.asarray(self._checksums), labels=np.asarray(self._labels),
        )  # fmt: skip
        with atomic_file(index_of(self.path)) as temporary:
            temporary.write_text(json.dumps(index.to_json(), separators=(",", ":")) + "\n", encoding="utf-8")


def _with_contents(manifest: ShardManifest, directory: Path) -> ShardManifest:
    """The manifest with count, encoding, shards and identity of a finished directory, from its indexes."""
    shards: list[ShardEntry] = []
    contents, count, encoding = [], 0, "png"
    for number, path in enumerate(sorted(directory.glob("shard-*.tar"))):
        index = ShardIndex.read(index_of(path))
        if path.name != shard_name(number) or index.first != count:
            raise ValueError(f"{path}: expected {shard_name(number)} starting at sample {count}")
        shards.append(ShardEntry(path.name, index.count, count))
        contents.append(index.content)
        count, encoding = count + index.count, index.encoding
    return replace(manifest, count=count, encoding=encoding, shards=tuple(shards), identity=digest(contents))


def seal_shard_set(
    directory: Path, manifest: ShardManifest, final: Path | None = None, hashed: Mapping[str, str] | None = None
) -> None:
    """Write the manifest of a directory whose shards are all in it.

    manifest: its `count`, `encoding`, `shards` and `identity` are filled in from the indexes, and its `files`.
    final: rename the directory to this name; without it, it is sealed where it is.
    hashed: of a set sealed where it is, `{name: SHA-256}` of the files that their writers have hashed.
    Raises ValueError if a shard is missing or out of sequence, OSError or UserError if it cannot be written.
    """
    manifest = _with_contents(manifest, directory)
    if final is not None:
        seal_directory(directory, final, manifest)
    else:
        files = file_entries(directory, hashed)
        visible = {name: entry for name, entry in files.items() if not name.startswith(".")}
        write_json(directory / MANIFEST, manifest.sealed(visible).to_file())
    remember_as_whole(*_local_manifest(final or directory))


class ShardSet:
    """Random access to a sealed shard set by sample index, wherever it lies.

    Reads samples when they are needed, and keeps few files open. Of all indexes it keeps 20 bytes a sample
    (`maep.data.sample_table`), in a file that all processes share once `prepare` was called. Every sample is checked
    against its checksum. Can be pickled for loader workers.
    """

    def __init__(self, path: Location | str, reading: Reading | None = None) -> None:
        """path: directory with the manifest; reading: how, for a remote one.

        Raises UserError if the manifest cannot be read or, in a local set, a file is missing or of another size.
        """
        self.path = location(path)
        self.reading = reading
        self._storage = open_storage(self.path, reading)
        content = _manifest_bytes(self._storage, self.path)
        self.manifest = read_shard_manifest(content, self.path / MANIFEST)
        self._manifest_digest = hashlib.sha256(content).digest()
        self._tars = [(shard.name, self.manifest.files[shard.name]) for shard in self.manifest.shards]
        if isinstance(self.path, Path):
            self._stamps, problems = look_at(self.path, self.manifest)
            for problem in problems.values():
                fail(problem)
        self._make_table()

    @property
    def identity(self) -> str:
        """64 hex digits: what the samples are, wherever they lie and however they are encoded."""
        return self.manifest.identity

    @property
    def classes(self) -> list[str]:
        """Class names, by label."""
        return list(self.manifest.classes)

    def __len__(self) -> int:
        return self.manifest.count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None, "_storage": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._storage = open_storage(self.path, self.reading)
        self._make_table()

    def _make_table(self) -> None:
        try:
            self._table = SampleTable(self.manifest.shards, self.manifest.count)
        except MemoryError:
            fail(f"{self.path / MANIFEST}: count={self.manifest.count}: there is no memory to list so many samples")
        self._map_table()

    def __del__(self) -> None:
        if hasattr(self, "_storage"):
            self._storage.close()

    def _locate(self, indices: Sequence[int]) -> tuple[list[int], np.ndarray]:
        """Of some samples the numbers of their shards, and their rows of the table."""
        samples = np.asarray(indices, dtype=np.int64)
        outside = (samples < 0) | (samples >= len(self))
        if outside.any():
            raise IndexError(f"{self.path}: sample {samples[outside.argmax()]} of {len(self)}")
        shards = self._table.shards_of(samples)
        self._fill(self._table.unknown(shards))
        return shards.tolist(), self._table.rows[samples]

    def _fill(self, shards: Sequence[int]) -> None:
        """Read the indexes of some shards into the table."""
        for part in parts_of(shards, INDEXES_AT_ONCE):
            for number, content in zip(part, self._read(*self._index_extents(part)), strict=True):
                shard = self.manifest.shards[number]
                source = self.path / shard.index_name
                if content is None:
                    fail(f"{source}: altered (SHA-256 differs from {self.path / MANIFEST}{self._replaced()})")
                index = ShardIndex.from_json(parse_json(content, source), source)
                index.check(shard, self.manifest.files[shard.name].bytes, len(self.classes), source)
                self._table.fill(number, index, source)

    def _index_extents(self, shards: Sequence[int]) -> tuple[list[Extent], list[Check]]:
        names = [self.manifest.shards[number].index_name for number in shards]
        entries = [self.manifest.files[name] for name in names]
        for name, entry in zip(names, entries, strict=True):
            if entry.bytes > LIMIT:
                fail(
                    f"{self.path / name}: {entry.bytes} bytes, its manifest says; at most {LIMIT} are read of an index"
                )
        extents = [Extent.whole(name, entry) for name, entry in zip(names, entries, strict=True)]
        return extents, [partial(_has_digest, entry.sha256) for entry in entries]

    def prepare(self) -> None:
        """Make random access cheap for this and all later processes: every index read once, and kept in one file.

        Only for sets of PACKED_FROM samples and more; where the file cannot be written, each process keeps its own
        copy. Raises UserError if an index is not whole.
        """
        if len(self) < PACKED_FROM or self._map_table():
            return
        self._fill(self._table.all_unknown())
        path = self._table_file()
        if path is None:
            return
        try:
            self._table.write_file(path, self._manifest_digest)
        except UserError as error:
            say(f"{error}; every process reads the indexes of {self.path} for itself")
            return
        self._map_table()

    def _table_file(self) -> Path | None:
        """Where the table is kept: beside a local set, in the cache of a remote one; None where there is none."""
        if isinstance(self.path, Path):
            return beside(self.path, "samples")
        if self.reading is None or not self.reading.cache_bytes:
            return None
        return self.reading.cache_dir / f".samples-{self._manifest_digest.hex()[:32]}"

    def _map_table(self) -> bool:
        path = self._table_file() if len(self) >= PACKED_FROM else None
        return path is not None and self._table.map_file(path, self._manifest_digest)

    def _read(self, extents: list[Extent], checks: Sequence[Check]) -> list[bytes | None]:
        """What passes its check; what does not is read once more where that may help, and then None."""
        return [
            content if check(content) else self._read_again(extent, check)
            for extent, check, content in zip(extents, checks, self._storage.read(extents), strict=True)
        ]

    def _read_again(self, extent: Extent, check: Check) -> bytes | None:
        content = self._storage.read([extent])[0] if self._storage.forget(extent) else b""
        return content if check(content) else None

    def images(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Some images, each uint8 [H, W, 3]. Raises UserError, naming shard and sample, if one is not whole."""
        images: list[np.ndarray] = []
        for start in range(0, len(indices), READ_AT_ONCE):
            part = indices[start : start + READ_AT_ONCE]
            images += [self._decode(index, content) for index, content in zip(part, self._encoded(part), strict=True)]
        return images

    def _encoded(self, indices: Sequence[int]) -> list[bytes | None]:
        shards, rows = self._locate(indices)
        places = zip(shards, rows["offset"].tolist(), rows["bytes"].tolist(), strict=True)
        extents = [Extent(*self._tars[shard], offset, size) for shard, offset, size in places]
        return self._read(extents, [partial(_has_checksum, checksum) for checksum in rows["crc32"].tolist()])

    def _decode(self, index: int, encoded: bytes | None) -> np.ndarray:
        if encoded is None:
            why = f"its bytes differ from their checksum in the index{self._since(index)}"
            fail(f"{self._sample(index)} is altered ({why})")
        try:
            return decode_image(encoded, self.manifest.image_size)
        except Exception as error:  # noqa: BLE001  (Pillow lets pass whatever a parser raises)
            fail(f"{self._sample(index)} cannot be decoded ({error})")

    def _since(self, index: int) -> str:
        """What happened to a sample's shard since the set was opened, as far as it can be seen, for messages."""
        name, entry = self._tars[self._locate([index])[0][0]]
        if not isinstance(self.path, Path):
            return ""
        if replaced := self._replaced():
            return replaced
        stamp, problem = look_at_file(self.path / name, entry)
        if problem:
            return f"; {problem}"
        return "; the file was changed while the set was in use" if stamp != self._stamps[name] else ""

    def _replaced(self) -> str:
        """Whether another set lies where this one was opened, for messages."""
        if not isinstance(self.path, Path):
            return ""
        current = hashlib.sha256(_manifest_bytes(self._storage, self.path)).digest()
        return (
            "" if current == self._manifest_digest else "; another set was put in its place while this one was in use"
        )

    def _sample(self, index: int) -> str:
        """A sample by shard and number, for messages."""
        return f"{self.path / self._tars[self._locate([index])[0][0]][0]}: sample {index:09d}"

    def image(self, index: int) -> np.ndarray:
        """One image, uint8 [H, W, 3]. Raises UserError, naming shard and sample, if it is not whole."""
        return self.images([index])[0]

    def labels(self, indices: Sequence[int]) -> list[int]:
        """Some labels, each an index into `classes`."""
        return self._locate(indices)[1]["label"].tolist()

    def label(self, index: int) -> int:
        """One label, an index into `classes`."""
        return self.labels([index])[0]

    def batch(self, indices: Sequence[int]) -> "tuple[Tensor, Tensor]":
        """Images uint8 [N, 3, H, W] and labels int64 [N] of some sample indices, in their order; of none, N is 0."""
        import torch

        side = self.manifest.image_size or 0
        images = np.stack(self.images(indices)) if len(indices) else np.empty((0, side, side, 3), np.uint8)
        labels = torch.tensor(self.labels(indices), dtype=torch.int64)
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), labels

    def check(self) -> list[str]:
        """What is wrong with the files as far as a start can tell (`maep.data.verification`), each naming the file.

        Of a remote set nothing is: its indexes and samples are checked one by one as they are read.
        """
        if not isinstance(self.path, Path):
            return []
        return problems_at_start(self.path, self.manifest, self._manifest_digest.hex())

    def verify(self) -> list[str]:
        """Every difference between the files and the manifest (SHA-256 included), each naming the file.

        A remote set is not read through for it: its indexes and samples are checked one by one as they are read.
        """
        return shard_problems(self.path) if isinstance(self.path, Path) else []


def _has_digest(sha256: str, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == sha256


def _has_checksum(checksum: int, content: bytes) -> bool:
    return zlib.crc32(content) == checksum


def read_manifest(directory: Path) -> ShardManifest:
    """The manifest of a shard set. Raises UserError if there is none or it is not a shard set's."""
    return _local_manifest(directory)[1]


def _local_manifest(directory: Path) -> tuple[Path, ShardManifest, str]:
    """A set's directory, manifest and the SHA-256 of that."""
    content = _manifest_bytes(open_storage(directory), directory)
    return directory, read_shard_manifest(content, directory / MANIFEST), hashlib.sha256(content).hexdigest()


def _manifest_bytes(storage: Storage, directory: Location) -> bytes:
    if not storage.exists(MANIFEST):
        fail(f"{directory}: not a shard set (no {MANIFEST}); make one with shards/build.py")
    return storage.read_file(MANIFEST)


def shard_problems(directory: Path) -> list[str]:
    """Every difference between a shard set and its manifest: missing, truncated, altered or stray files.

    Reads all files, and keeps beside the set which of them were whole. Raises UserError if there is no manifest.
    """
    _, manifest, manifest_digest = _local_manifest(directory)
    problems = all_problems(directory, manifest, manifest_digest)
    strays = sorted(path for path in directory.glob("shard-*") if path.name not in manifest.files)
    return [*problems, *(f"{path}: not in {MANIFEST}" for path in strays)]


def _is_of_shards(manifest: Path) -> bool:
    entries = read_json(manifest)
    return isinstance(entries, dict) and "shards" in entries


def find_shard_sets(path: Path) -> list[Path]:
    """The shard sets at or below a path, hidden directories left out; of one shard, the set it is in.

    A directory with shards and no manifest counts: checking it says what it lacks.

    Raises UserError if there is none.
    """
    if path.is_file() and path.suffix == ".tar":
        return [path.parent]
    if (path / MANIFEST).is_file():
        return [path]
    below = {shard.parent for shard in path.rglob("shard-*.tar")}
    below |= {manifest.parent for manifest in path.rglob(MANIFEST) if _is_of_shards(manifest)}
    sets = sorted(p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts))
    if not sets:
        fail(f"{path}: no shard set here or below (a directory with shard-*.tar and {MANIFEST})")
    return sets
