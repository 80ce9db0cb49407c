"""CIFAR's own batches, which are pickles, read without executing what they say.

`cifar-10-batches-py` and `cifar-100-python` of A. Krizhevsky, Learning multiple layers of features from tiny
images, 2009.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from maep.data.images.archives import Archive, open_archive
from maep.runtime.errors import fail
from maep.storage.array_pickles import load_arrays

MAX_BATCHES = 256 * 2**20  # bytes of all files together; CIFAR-10's and CIFAR-100's have 186 million


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


def read_pickle(content: bytes, source: str) -> Any:
    """The plain value of a pickle (see `array_pickles`); nothing it names is imported or called.

    source: where it comes from, for the message. Raises UserError if it wants more than arrays or is damaged.
    """
    try:
        return load_arrays(content)
    except Exception as error:  # noqa: BLE001  (a damaged pickle raises anything)
        fail(f"{source}: refused: {error or type(error).__name__}")


def folder_of(archive: Archive, layout: Layout) -> str | None:
    """The folder of the archive that holds these batches (`""`: its top), or None."""
    folders = [name[: -len(layout.meta)] for name in archive.files if f"/{name}".endswith(f"/{layout.meta}")]
    files = set(archive.files)
    return next((folder for folder in folders if folder + layout.train[0] in files), None)


def _check(batch: Any, layout: Layout, source: str) -> None:
    pixels = batch.get("data") if isinstance(batch, dict) else None
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3072:
        fail(f"{source}: not a CIFAR batch (no uint8 `data` of 3072 columns)")
    for key, kind in ((layout.labels, int), ("filenames", str)):
        values = batch.get(key)
        fits = isinstance(values, list) and len(values) == len(pixels)
        if not fits or not all(isinstance(value, kind) for value in values):
            fail(f"{source}: not a CIFAR batch ({len(pixels)} images need as many `{key}`)")


def _read_batches(archive: Archive, names: Sequence[str]) -> list[Any]:
    """What some files hold, in this order; the bytes of one file at a time are in memory, and few of them all."""
    values, left = {}, MAX_BATCHES
    for name in archive.in_cheap_order(names):
        content = archive.read(name, left)
        left -= len(content)
        values[name] = read_pickle(content, f"{archive.path}: {name}")
    return [values[name] for name in names]


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
    meta, *batches = _read_batches(archive, names)
    classes = meta.get(layout.class_names) if isinstance(meta, dict) else None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        fail(f"{path}: {names[0]}: has no list of names `{layout.class_names}`")
    for name, batch in zip(names[1:], batches, strict=True):
        _check(batch, layout, f"{path}: {name}")
    labels = [int(label) for batch in batches for label in batch[layout.labels]]
    if not all(0 <= label < len(classes) for label in labels):
        fail(f"data.root={path}: a label is not in 0..{len(classes) - 1}")
    pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    images = [str(name) for batch in batches for name in batch["filenames"]]
    train = sum(len(batch["data"]) for batch in batches[: len(layout.train)])
    return CifarBatches(pixels, labels, images, classes, train)
