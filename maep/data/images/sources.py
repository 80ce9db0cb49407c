"""Images in: every layout that `data.root` may have, as one list of named, labelled images a split."""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from maep.config.schema import DataSettings
from maep.data.images.archives import Archive, open_archive, state_of
from maep.data.images.cifar import LAYOUTS, folder_of, read_cifar
from maep.runtime.console import say
from maep.runtime.errors import UserError, fail

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "val", "valid", "validation")
LABEL_LISTS = (
    "val_labels.csv",
    "val_labels.txt",
    "val.txt",
    "val/labels.csv",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
)


@dataclass(frozen=True)
class Item:
    """One image: its name in the source, its label, and its row where the source is an array."""

    name: str
    label: int
    row: int = -1


@dataclass(frozen=True)
class Source:
    """Where images come from. Small when pickled: archives are opened once a process, on first use.

    format: `digits`, `cifar10`, `cifar100`, or `files` for images that are files.
    """

    root: Path | None
    format: str
    classes: tuple[str, ...]

    def state(self) -> tuple[int, int]:
        """(bytes, modification time) of the file the images come from; zeros for a directory."""
        return state_of(self.root) if self.root else (0, 0)

    def image(self, item: Item) -> Image.Image:
        """One image, decoded, RGB, in its own size. Raises UserError, naming it, if it is corrupt."""
        if self.root is None:
            return Image.fromarray(_digits()[0][item.row]).convert("RGB")
        if self.format != "files":
            return Image.fromarray(read_cifar(self.root, self.format).pixels[item.row])
        content = open_archive(self.root).read(item.name)
        try:
            return _as_rgb(Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "WEBP"]))
        except Exception as error:  # noqa: BLE001  (Pillow lets pass whatever a parser raises)
            fail(f"{self.root}: {item.name}: corrupt image: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Pillow's message without the address of the buffer."""
    return str(error).partition(" <_io")[0] or type(error).__name__


def _as_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: grey is repeated, 16-bit grey scaled, transparency dropped."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return image.convert("RGB")


Splits = dict[str, list[Item]]


def open_source(settings: DataSettings) -> tuple[Source, Splits]:
    """The source of `data.root` and its images by split, each in its balanced order; limits not yet applied.

    A source without a test split gives `data.test_fraction` of its images to `test` (see `hold_out`). A split
    without images is absent. Raises UserError for a missing root, an empty class folder, or a layout that
    does not fit `data.format`.
    """
    open_archive.cache_clear()
    read_cifar.cache_clear()
    source, splits = _read_layout(settings)
    if "test" not in splits:
        splits = hold_out(splits["train"], source.classes, settings.test_fraction)
    splits = {name: balanced(items) for name, items in splits.items() if items}
    if not splits:
        fail(f"data.root={settings.root}: no images ({', '.join(IMAGE_SUFFIXES)})")
    return source, splits


def _read_layout(settings: DataSettings) -> tuple[Source, Splits]:
    if settings.format == "digits" and settings.root is not None:
        fail(f"data.root={settings.root}: data.format=digits brings its own images; choose data.format=auto")
    if settings.format == "digits":
        return _digits_layout()
    if settings.root is None:
        fail("data.root: not set; give a directory, .zip or .tar of images, or data.format=digits")
    path = Path(settings.root)
    archive = open_archive(path)
    layout = detect(archive) if settings.format == "auto" else settings.format
    if layout in LAYOUTS:
        return _cifar_layout(archive, layout)
    if layout == "labels":
        return _labels_layout(archive)
    return _folders_layout(archive)


def detect(archive: Archive) -> str:
    """The layout of an archive: cifar10, cifar100, labels or folders (of which imagenet is one)."""
    for kind, layout in LAYOUTS.items():
        if folder_of(archive, layout) is not None:
            return kind
    return "labels" if f"{_top(archive)}labels.csv" in archive.files else "folders"


def _top(archive: Archive) -> str:
    """The folder (`""`, or with a trailing `/`) that everything lies in, unless it is a split or a class."""
    tops = {name.partition("/")[0] for name in archive.folders}
    if len(tops) != 1 or "labels.csv" in archive.files or _is_flat(archive, ""):
        return ""
    top = tops.pop()
    if f"{top}/labels.csv" in archive.files:
        return f"{top}/"
    return "" if top in TRAIN_NAMES + TEST_NAMES or _is_flat(archive, f"{top}/") else f"{top}/"


def _images(archive: Archive) -> list[str]:
    return [name for name in archive.files if name.lower().endswith(IMAGE_SUFFIXES)]


# --- class folders, ImageNet ---


def _folders_layout(archive: Archive) -> tuple[Source, Splits]:
    """{train,test|val}/class/…/image, or class/…/image; ImageNet's flat val/ with a list of labels."""
    top = _top(archive)
    prefixes = {
        split: folder
        for split, names in (("train", TRAIN_NAMES), ("test", TEST_NAMES))
        if (folder := _split_folder(archive, top, names))
    } or {"train": top}
    flat = [split for split, prefix in prefixes.items() if _is_flat(archive, prefix)]
    if "train" in flat:
        fail(f"data.root={archive.path}: {prefixes['train'] or 'top'}: images lie outside class folders")
    foldered = {s: _class_folders(archive, prefix) for s, prefix in prefixes.items() if s not in flat}
    labelled = {s: _flat_labels(archive, top, prefixes[s], sorted(foldered.get("train", ()))) for s in flat}
    classes = _common_classes(archive, foldered, labelled)
    labels = {name: label for label, name in enumerate(classes)}
    splits = {
        split: [Item(name, labels[kind]) for kind, names in folders.items() for name in names]
        for split, folders in (foldered | labelled).items()
    }
    return Source(archive.path, "files", tuple(classes)), splits


def _split_folder(archive: Archive, top: str, names: tuple[str, ...]) -> str | None:
    """The folder of a split; one with class folders goes before a flat one, a flat val before a flat test."""
    folders = [f"{top}{name}/" for name in names if f"{top}{name}" in archive.folders]
    flat = {folder: _is_flat(archive, folder) for folder in folders}
    folders.sort(key=lambda folder: (flat[folder], flat[folder] and folder == f"{top}test/"))
    if len(folders) > 1:
        say(f"data.root={archive.path}: using {folders[0]}, ignoring {', '.join(folders[1:])}")
    return folders[0] if folders else None


def _is_flat(archive: Archive, prefix: str) -> bool:
    """Images lie right below `prefix`, in no class folder."""
    return any(name.startswith(prefix) and "/" not in name[len(prefix) :] for name in _images(archive))


def _class_folders(archive: Archive, prefix: str) -> dict[str, list[str]]:
    """Images by class folder below `prefix`. Raises UserError naming an empty class folder."""
    folders = (name[len(prefix) :] for name in archive.folders if name.startswith(prefix) and name != prefix)
    images: dict[str, list[str]] = {name: [] for name in sorted(folders) if "/" not in name}
    for name in _images(archive):
        if name.startswith(prefix):
            images[name[len(prefix) :].partition("/")[0]].append(name)
    empty = [folder for folder, names in images.items() if not names]
    if empty:
        kinds = ", ".join(IMAGE_SUFFIXES)
        fail(f"data.root={archive.path}: class folder {prefix}{empty[0]}/ has no images ({kinds})")
    return images


def _common_classes(archive: Archive, *parts: dict[str, dict[str, list[str]]]) -> list[str]:
    """The sorted classes; those of the test split must be among the training ones where there are any."""
    by_split = {split: set(folders) for part in parts for split, folders in part.items()}
    unknown = sorted(by_split.get("test", set()) - by_split.get("train", by_split.get("test", set())))
    if unknown:
        fail(f"data.root={archive.path}: class {unknown[0]} of the test split is not in the training split")
    return sorted(by_split.get("train") or by_split.get("test", set()))


def _flat_labels(archive: Archive, top: str, prefix: str, classes: list[str]) -> dict[str, list[str]]:
    """Images of a flat folder by class, from the label list beside it (see `LABEL_LISTS`).

    Lines are `file label …` (commas or spaces; a header may lead), the label a class name or a number of the
    sorted classes; or one class name a line, for the files in their order.
    """
    setting = f"data.root={archive.path}"
    label_list = next((top + name for name in LABEL_LISTS if top + name in archive.files), None)
    if label_list is None:
        fail(f"{setting}: {prefix} is flat and has no label list; add one of {', '.join(LABEL_LISTS)}")
    lines = [line.replace(",", " ").split() for line in archive.read(label_list).decode("utf-8-sig").splitlines()]
    files = [name for name in _images(archive) if name.startswith(prefix)]
    rows = [line for line in lines if line]
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(files):
            fail(f"{setting}: {label_list} has {len(rows)} lines for the {len(files)} images of {prefix}")
        rows = [[file, row[0]] for file, row in zip(files, rows, strict=True)]
    if not classes and any(row[-1].isdigit() for row in rows):
        fail(f"{setting}: {label_list} numbers its classes, but no training folders say which they are")
    labels = {PurePosixPath(row[0]).stem: _class_of(row[1], classes) for row in rows if len(row) > 1}
    images = defaultdict(list)
    for file in files:
        label = labels.get(PurePosixPath(file).stem)
        if label is None or (classes and label not in classes):
            fail(f"{setting}: {file}: {label_list} gives no known class for it")
        images[label].append(file)
    return images


def _class_of(word: str, classes: list[str]) -> str:
    return classes[int(word)] if word.isdigit() and int(word) < len(classes) else word


# --- labels.csv ---


def _labels_layout(archive: Archive) -> tuple[Source, Splits]:
    """`labels.csv` with the columns file, index and, if known, wnid and name; files relative to it."""
    top = _top(archive)
    source = f"data.root={archive.path}: {top}labels.csv"
    if f"{top}labels.csv" not in archive.files:
        fail(f"{source}: missing")
    rows = csv.DictReader(io.StringIO(archive.read(f"{top}labels.csv").decode("utf-8-sig")))
    if not {"file", "index"} <= set(rows.fieldnames or ()):
        fail(f"{source}: must have the columns file, index (and may have wnid, name)")
    files, names, items = set(archive.files), {}, []
    for row in rows:
        file = top + (row["file"] or "")
        if file not in files:
            fail(f"{source}: line {rows.line_num}: no such file {file}")
        if not (row["index"] or "").isdigit():
            fail(f"{source}: line {rows.line_num}: index {row['index']!r} is not a whole number >= 0")
        label = int(row["index"])
        names[label] = row.get("name") or row.get("wnid") or str(label)
        items.append(Item(file, label))
    classes = tuple(names.get(label, str(label)) for label in range(max(names, default=-1) + 1))
    return Source(archive.path, "files", classes), {"train": items}


# --- arrays ---


def _cifar_layout(archive: Archive, kind: str) -> tuple[Source, Splits]:
    if folder_of(archive, LAYOUTS[kind]) is None:
        layout = LAYOUTS[kind]
        fail(f"data.root={archive.path}: no {kind} batches (expected {layout.meta}, {layout.train[0]}, …)")
    batches = read_cifar(archive.path, kind)
    items = [
        Item(f"{batches.classes[label]}/{name}", label, row)
        for row, (label, name) in enumerate(zip(batches.labels, batches.names, strict=True))
    ]
    splits = {"train": items[: batches.train], "test": items[batches.train :]}
    return Source(archive.path, kind, tuple(batches.classes)), splits


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, list[int]]:
    """scikit-learn's handwritten digits: uint8 [1797, 8, 8] and labels; its 17 levels spread over 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), [int(label) for label in bunch.target]


def _digits_layout() -> tuple[Source, Splits]:
    items = [Item(f"digit-{row:04d}", label, row) for row, label in enumerate(_digits()[1])]
    return Source(None, "digits", tuple(map(str, range(10)))), {"train": items}


# --- order and hold-out ---


def _sort_key(item: Item) -> tuple[str, str, int]:
    """Sorts the images of a class by a hash of the name, folder and suffix apart.

    So the order is the same however the images are packed.
    """
    return sha256(PurePosixPath(item.name).stem.encode()).hexdigest(), item.name, item.row


def _by_class(items: Sequence[Item]) -> dict[int, list[Item]]:
    classes = defaultdict(list)
    for item in sorted(items, key=_sort_key):
        classes[item.label].append(item)
    return dict(sorted(classes.items()))


def balanced(items: Sequence[Item]) -> list[Item]:
    """Round-robin over the classes, so that every prefix is balanced; within a class by hash of the name."""
    rounds = zip_longest(*_by_class(items).values())
    return [item for one_each in rounds for item in one_each if item is not None]


def hold_out(items: Sequence[Item], classes: Sequence[str], fraction: float) -> Splits:
    """Split into train and test where the source does not; the test split takes the first of each class.

    Of n images in all, round(fraction * n) are held out: of each class the whole part of its share, and one
    more of the classes with the largest remainders, chosen by a hash of the class name among equals. So every
    class is within one image of its share, and where classes have a single image each, whole classes go.
    """
    by_class = _by_class(items)
    share = {label: fraction * len(members) for label, members in by_class.items()}
    missing = round(fraction * len(items)) - sum(int(value) for value in share.values())
    by_remainder = sorted(
        share, key=lambda label: (-round(share[label] % 1, 9), sha256(classes[label].encode()).hexdigest())
    )
    extra = set(by_remainder[:missing])
    test = {label: int(share[label]) + (label in extra) for label in by_class}
    return {
        "train": [item for label, members in by_class.items() for item in members[test[label] :]],
        "test": [item for label, members in by_class.items() for item in members[: test[label]]],
    }


def corrupt_reason(source: Source, item: Item) -> str | None:
    """Why an image cannot be decoded, or None."""
    try:
        source.image(item)
    except UserError as error:
        return str(error).removeprefix(f"{source.root}: {item.name}: ")
    return None
