"""CIFAR's own batches, which are pickles, read without executing what they say.

`cifar-10-batches-py` and `cifar-100-python` of A. Krizhevsky, Learning multiple layers of features from tiny
images, 2009.
"""

import io
import pickle
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from maep.data.images.archives import Archive, open_archive
from maep.runtime.errors import fail

# Everything that NumPy needs to rebuild an array, under its old and its new module name.
_reconstruct = np.ndarray(0).__reduce__()[0]
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True)
class Layout:
    """Where the parts of one of the two sets lie."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    class_names: str
    labels: str


LAYOUTS = {
    "cifar10": Layout(
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        "label_names",
        "labels",
    ),
    "cifar100": Layout(("train",), ("test",), "meta", "fine_label_names", "fine_labels"),
}


@dataclass(frozen=True)
class CifarBatches:
    """pixels: uint8 [N, 32, 32, 3], the first `train` of them for training; labels, names: one each."""

    pixels: np.ndarray
    labels: list[int]
    names: list[str]
    classes: list[str]
    train: int


class _ArraysOnly(pickle.Unpickler):
    """Builds plain containers, numbers, text and NumPy arrays; any other class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only NumPy arrays are allowed")
        return ALLOWED[module, name]


def read_pickle(content: bytes, source: str) -> Any:
    """The plain value of a pickle; nothing it names is imported or called, NumPy's array constructor apart.

    source: where it comes from, for the message. Raises UserError if it wants more than arrays or is damaged.
    """
    try:
        return _plain(_ArraysOnly(io.BytesIO(content), encoding="bytes").load())
    except Exception as error:  # noqa: BLE001  (a damaged pickle raises anything)
        fail(f"{source}: refused: {error}")


def _plain(value: Any) -> Any:
    """Python 2's byte strings as text, everywhere in a value."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def folder_of(archive: Archive, layout: Layout) -> str | None:
    """The folder of the archive that holds these batches (`""`: its top), or None."""
    folders = [name[: -len(layout.meta)] for name in archive.files if f"/{name}".endswith(f"/{layout.meta}")]
    files = set(archive.files)
    return next((folder for folder in folders if folder + layout.train[0] in files), None)


def _check(batch: Any, layout: Layout, source: str) -> None:
    pixels = batch.get("data") if isinstance(batch, dict) else None
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        fail(f"{source}: not a CIFAR batch (no uint8 `data` of 3072 columns)")
    for key, kind in ((layout.labels, int), ("filenames", str)):
        values = batch.get(key)
        fits = isinstance(values, list) and len(values) == len(pixels)
        if not fits or not all(isinstance(value, kind) for value in values):
            fail(f"{source}: not a CIFAR batch ({len(pixels)} images need as many `{key}`)")


@lru_cache(maxsize=1)
def read_cifar(path: Path, kind: str) -> CifarBatches:
    """All images of `cifar10` or `cifar100` from a directory or archive of the batches, read once a process.

    Raises UserError naming what is missing, damaged or asks for code.
    """
    archive, layout = open_archive(path), LAYOUTS[kind]
    folder = folder_of(archive, layout)
    names = [f"{folder}{name}" for name in (layout.meta, *layout.train, *layout.test)]
    missing = [name for name in names if name not in archive.files]
    if missing:
        fail(f"data.root={path}: {missing[0]}: missing from the {kind} batches")
    content = archive.read_many(names)
    meta, *batches = (read_pickle(content[name], f"{path}: {name}") for name in names)
    classes = meta.get(layout.class_names) if isinstance(meta, dict) else None
    if not classes:
        fail(f"{path}: {names[0]}: has no `{layout.class_names}`")
    for name, batch in zip(names[1:], batches, strict=True):
        _check(batch, layout, f"{path}: {name}")
    labels = [int(label) for batch in batches for label in batch[layout.labels]]
    if not all(0 <= label < len(classes) for label in labels):
        fail(f"data.root={path}: a label is not in 0..{len(classes) - 1}")
    pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    images = [str(name) for batch in batches for name in batch["filenames"]]
    train = sum(len(batch["data"]) for batch in batches[: len(layout.train)])
    return CifarBatches(pixels, labels, images, classes, train)
