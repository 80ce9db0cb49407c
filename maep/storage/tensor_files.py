"""Tensors spread over the safetensors files of a directory, whole or in pieces, memory-mapped.

    rank-0000-of-0004.safetensors    NAME: a whole tensor. NAME@START: its elements from START on, flattened; the
                                     shape of the whole is in the file's metadata

Any number of processes reads what any number has written, and reads only what it asks for.
"""

import errno
import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maep.runtime.errors import UserError, fail
from maep.runtime.plain_files import open_regular
from maep.storage.manifests import FileEntry

DTYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """Elements of a tensor of `shape`, flattened, from `start` on; all of them if there are as many."""

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    start: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor."""
        return self.tensor.numel() == math.prod(self.shape)

    @property
    def key(self) -> str:
        """Its name in a file."""
        return self.name if self.is_whole else f"{self.name}@{self.start}"


class HostBuffer:
    """The content of one file in memory, kept from one save to the next."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._header = b""
        self._size = 0

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Copy the pieces as safetensors lays them out. Returns when they are in memory."""
        pieces = sorted(pieces, key=lambda piece: (-piece.tensor.element_size(), piece.key))
        size, extents = 0, []
        for piece in pieces:
            extents.append((size, size + piece.tensor.numel() * piece.tensor.element_size()))
            size = extents[-1][1]
        self._header = _header(pieces, extents)
        self._size = size
        on_device = any(piece.tensor.is_cuda for piece in pieces)  # no CUDA for what is computed on the CPU beside it
        if self._bytes.numel() < size:
            self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=on_device)
        for piece, (begin, end) in zip(pieces, extents, strict=True):
            target = self._bytes[begin:end].view(piece.tensor.dtype)
            target.copy_(piece.tensor.detach().reshape(-1), non_blocking=True)
        if on_device:
            torch.cuda.current_stream().synchronize()

    def write(self, path: Path) -> FileEntry:
        """Write the file and fsync it; returns its entry of a manifest. Raises OSError.

        It is hashed in memory by a second thread meanwhile, so it need not be read again.
        """
        content: Any = self._bytes.numpy()
        body, sha256 = memoryview(content)[: self._size], hashlib.sha256(self._header)
        hashing = threading.Thread(target=sha256.update, args=(body,))
        hashing.start()
        try:
            with path.open("wb") as file:
                file.write(self._header)
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
        finally:
            hashing.join()
        return FileEntry(len(self._header) + self._size, sha256.hexdigest())


@contextmanager
def disk_errors() -> Iterator[None]:
    """Whatever writes safetensors goes in here: its own error for a full disk becomes the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error).splitlines()[0]) from error


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write whole tensors, on the host and contiguous, as a safetensors file, for use inside an `atomic_file`.

    Raises OSError where the disk is full or cannot be written.
    """
    with disk_errors():
        safetensors.torch.save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)


def _header(pieces: Sequence[Piece], extents: Sequence[tuple[int, int]]) -> bytes:
    """The head of a safetensors file: its length, then JSON padded to eight bytes."""
    entries: dict[str, object] = {
        "__metadata__": {piece.name: ",".join(map(str, piece.shape)) for piece in pieces if not piece.is_whole}
    }
    for piece, extent in zip(pieces, extents, strict=True):
        shape = piece.shape if piece.is_whole else [piece.tensor.numel()]
        entries[piece.key] = {"dtype": DTYPES[piece.tensor.dtype], "shape": shape, "data_offsets": extent}
    content = json.dumps(entries).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _natural(text: str) -> int:
    """A number of elements from the metadata. Raises ValueError for anything else, and for more than 64 bits hold."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError(f"{text[:20]!r} is no number of elements")
    return int(text)


class ShardedTensors:
    """What the rank files of a directory hold, by name.

    Raises UserError, naming the file, for one that cannot be read, and for one with a tensor, or a piece, that another
    one has too. No writer puts a tensor into two files: one of them is of another save, be its values equal or not.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._where: dict[str, dict[int, tuple[Any, str]]] = {}  # by name and start
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(directory.glob("rank-*.safetensors")):
            try:
                open_regular(path).close()
                self._index(safe_open(path, framework="pt"))
            except (OSError, SafetensorError, ValueError) as error:
                raise UserError(f"{path}: cannot be read as weights: {error}") from error

    def _index(self, file: Any) -> None:
        for name, shape in (file.metadata() or {}).items():
            sizes = tuple(_natural(size) for size in shape.split(",") if size)
            if self._shapes.setdefault(name, sizes) != sizes:
                raise ValueError(f"{name} has shape {sizes}, in another file {self._shapes[name]}")
        for key in file.keys():  # noqa: SIM118
            name, at, start = key.partition("@")
            if at and name not in self._shapes:
                raise ValueError(f"{key}: a piece of a tensor whose shape its metadata does not say")
            pieces, first = self._where.setdefault(name, {}), _natural(start or "0")
            if first in pieces:
                raise ValueError(f"{name} from element {first} on is in another file too; remove the one that is wrong")
            pieces[first] = file, key

    def names(self, prefix: str = "") -> list[str]:
        """The tensors whose names start with `prefix`, in order."""
        return sorted(name for name in self._where if name.startswith(prefix))

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor that is there."""
        file, key = next(iter(self._where[name].values()))
        return self._shapes[name] if key != name else tuple(file.get_slice(key).get_shape())

    def tensor(self, name: str) -> Tensor:
        """A whole tensor. Raises UserError if it is not there or pieces of it are missing."""
        pieces = dict(sorted(self._where.get(name, {}).items()))
        if not pieces:
            fail(f"{self.directory}: lacks {name}")
        parts = [file.get_tensor(key) for file, key in pieces.values()]
        if [key for _, key in pieces.values()] == [name]:
            whole: Tensor = parts[0]
            return whole
        ends = [start + part.numel() for start, part in zip(pieces, parts, strict=True)]
        shape = self._shapes[name]
        if list(pieces) != [0, *ends[:-1]] or ends[-1] != math.prod(shape):
            fail(f"{self.directory}: pieces of {name} are missing, or overlap")
        return torch.cat(parts).view(shape)
