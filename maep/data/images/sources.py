"""Images in: every layout that `data.root` may have, as one list of named, labelled images a split."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from maep.config.data_settings import DataSettings
from maep.data.images.archives import Archive, check_root, open_archive
from maep.data.images.cifar import LAYOUTS, folder_of, read_cifar
from maep.data.images.decoding import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from maep.data.images.decoding import USUAL_SUFFIXES, Decoding, decode
from maep.data.images.label_lists import LabelTable, read_labels_csv
from maep.data.images.layouts import FolderLayout, Inventory, Tree, counted, inventory, kind_of, split_of
from maep.runtime.errors import UserError, fail

PACKED = (".tar", ".zip", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")  # as ImageNet's tar of a tar a class
SHOWN = 20  # classes and left-out kinds that are printed: what a mistaken order shows in, and no page of names


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
    decoding: Decoding = field(default_factory=Decoding)

    def image(self, item: Item) -> Image.Image:
        """One image, upright, RGB, in its own size. Raises UserError, naming it, if it is corrupt."""
        if self.root is None:
            return Image.fromarray(_digits()[0][item.row]).convert("RGB")
        if self.format != "files":
            return Image.fromarray(read_cifar(self.root, self.format).pixels[item.row])
        content = open_archive(self.root).read(item.name, self.decoding.max_bytes)
        try:
            return decode(content, self.decoding)
        except Exception as error:  # noqa: BLE001  (Pillow lets pass whatever a parser raises)
            fail(f"{self.root}: {item.name}: corrupt image: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Pillow's message without the address of the buffer."""
    return str(error).partition(" <_io")[0] or type(error).__name__


Splits = dict[str, list[Item]]


@dataclass(frozen=True)
class Survey:
    """What was understood of `data.root`.

    layout: one of the choices of data.format. places: the folder of each split, where they are folders. notes: what
    was left out, and why.
    """

    source: Source
    splits: Splits
    layout: str
    places: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people: layout, splits, images by kind, classes in the order of their labels, what is left out."""
        counts = ", ".join(
            f"{split} {len(items)} images" + (f" ({self.places[split]})" if self.places.get(split) else "")
            for split, items in self.splits.items()
        )
        names = self.source.classes
        classes = ", ".join(f"{label} {name}" for label, name in enumerate(names[:SHOWN]))
        more = f", … {len(names) - 1} {names[-1]}" if len(names) > SHOWN else ""
        lines = [
            f"data.root={self.source.root}: layout {self.layout}: {counts}{self._kinds()}",
            f"{len(names)} classes, label and name: {classes}{more}",
        ]
        return [*lines, *(["left out: " + "; ".join(self.notes)] if self.notes else [])]

    def _kinds(self) -> str:
        if self.source.format != "files":
            return ""
        kinds = Counter(kind_of(item.name) for items in self.splits.values() for item in items)
        return f"; {counted(kinds)}"


def open_source(settings: DataSettings) -> tuple[Source, Splits]:
    """The source of `data.root` and its images by split, as `survey`."""
    result = survey(settings)
    return result.source, result.splits


def survey(settings: DataSettings) -> Survey:
    """What `data.root` holds: images by split, each in its balanced order; limits not yet applied.

    A source without a test split gives `data.test_fraction` of its images to `test` (see `hold_out`). A split
    without images is absent. Raises UserError for a missing root, an empty class folder, a layout that is not
    recognised or does not fit `data.format`, and images of a single class.
    """
    if settings.resize and settings.resize < settings.image_size:
        fail(f"data.resize={settings.resize}: must be at least data.image_size={settings.image_size}")
    open_archive.cache_clear()
    read_cifar.cache_clear()
    result = _read_layout(settings)
    splits = result.splits
    labels = {item.label for items in splits.values() for item in items}
    if len(labels) == 1:
        name = result.source.classes[labels.pop()]
        fail(f"data.root={settings.root}: images of a single class, {name}; expected two classes at least")
    if "test" not in splits:
        splits = hold_out(splits["train"], result.source.classes, settings.test_fraction)
    splits = {name: balanced(items) for name, items in splits.items() if items}
    if not splits:
        fail(f"data.root={settings.root}: no images ({USUAL_SUFFIXES}){_seen(result)}")
    return Survey(result.source, splits, result.layout, result.places, result.notes)


def _seen(result: Survey) -> str:
    return f"; it holds {'; '.join(result.notes)}" if result.notes else ""


def _read_layout(settings: DataSettings) -> Survey:
    if settings.format == "digits" and settings.root is not None:
        fail(f"data.root={settings.root}: data.format=digits brings its own images; choose data.format=auto")
    if settings.format == "digits":
        return _digits_layout()
    if settings.root is None:
        fail("data.root: not set; give a directory, .zip or .tar of images, or data.format=digits")
    path = Path(settings.root)
    check_root(path)
    archive = open_archive(path)
    layout = detect(archive) if settings.format == "auto" else settings.format
    if layout in LAYOUTS:
        return _cifar_layout(archive, layout)
    decoding = Decoding(settings.background, settings.max_pixels)
    contents = inventory(archive)
    if layout == "labels":
        return _labels_layout(archive, contents, decoding)
    return _folders_layout(archive, contents, decoding, layout)


def detect(archive: Archive) -> str:
    """The layout of an archive: cifar10, cifar100, labels or folders (of which imagenet is one)."""
    for kind, layout in LAYOUTS.items():
        if folder_of(archive, layout) is not None:
            return kind
    return "labels" if _labels_folder(archive) is not None else "folders"


def _labels_folder(archive: Archive) -> str | None:
    """The folder of labels.csv: the top, or one within folders that everything lies in."""
    holders = {name[: -len("labels.csv")] for name in archive.files if f"/{name}".endswith("/labels.csv")}
    folder = ""
    while folder not in holders:
        below = {name[len(folder) :].partition("/")[0] for name in archive.folders if name.startswith(folder)} - {""}
        if len(below) != 1 or _has_image(archive, folder):
            return None
        (child,) = below
        folder = f"{folder}{child}/"
        if split_of(child):
            return None
    return folder


def _has_image(archive: Archive, folder: str) -> bool:
    names = (name for name in archive.files if name.startswith(folder) and "/" not in name[len(folder) :])
    return any(name.lower().endswith(IMAGE_SUFFIXES) for name in names)


def _other_files(contents: Inventory) -> list[str]:
    """Notes on files that are no images, and on images that are hidden."""
    packed = any(contents.others[suffix] for suffix in PACKED)
    unpack = "; unpack the archives among them, each into the folder of its class" if packed else ""
    others = [f"{counted(contents.others)} (no images{unpack})"] if contents.others else []
    hidden = [f"{len(contents.hidden)} hidden images ({contents.hidden[0]}, …)"] if contents.hidden else []
    return [*others, *hidden]


def _folders_layout(archive: Archive, contents: Inventory, decoding: Decoding, layout: str) -> Survey:
    if not contents.images:
        return Survey(
            Source(archive.path, "files", (), decoding), {"train": []}, layout, {}, tuple(_other_files(contents))
        )
    folders = FolderLayout(archive, contents.images).read()
    labels = {name: label for label, name in enumerate(folders.classes)}
    splits = {
        split: [Item(name, labels[kind]) for kind, names in by_class.items() for name in names]
        for split, by_class in folders.splits.items()
    }
    source = Source(archive.path, "files", tuple(folders.classes), decoding)
    return Survey(source, splits, layout, folders.places, (*folders.notes, *_other_files(contents)))


def _labels_layout(archive: Archive, contents: Inventory, decoding: Decoding) -> Survey:
    top = _labels_folder(archive)
    if top is None:
        fail(f"data.root={archive.path}: labels.csv: missing")
    table = read_labels_csv(archive, top)
    _check_columns(archive, top, table)
    items = [Item(row.file, row.label) for row in table.rows]
    splits, places, left_out = _splits_of_listed(archive, top, items, table.classes)
    unlisted = sorted(set(contents.images) - {item.name for item in items})
    notes = [f"{len(unlisted)} images that labels.csv does not list ({unlisted[0]}, …)"] if unlisted else []
    source = Source(archive.path, "files", table.classes, decoding)
    return Survey(source, splits, "labels", places, (*left_out, *notes, *_other_files(contents)))


def _check_columns(archive: Archive, top: str, table: LabelTable) -> None:
    """Raise UserError for a column that says the split: it is not read, and test images would be trained on."""
    for column, values in table.further.items():
        kinds = {split_of(value) for value in values}
        if len(kinds) > 1 and None not in kinds:
            fail(
                f"data.root={archive.path}: {top}labels.csv: column {column[:40]}: says which split an image belongs to"
                f" ({', '.join(sorted(values))}); that is said by folders: move the images into train/ and test/, or"
                " leave the column out to have data.test_fraction of each class held out"
            )


def _splits_of_listed(
    archive: Archive, top: str, items: list[Item], classes: Sequence[str]
) -> tuple[Splits, dict[str, str], list[str]]:
    """Listed images by split, the folders of the splits, and what is left out.

    Splits are said by folders `train` and `test` (or `val`) around all of them; where there are none, all is `train`.
    """
    tree = Tree([item.name for item in items])
    within = tree.inside(top)
    folders = {f"{within}{name}/": split_of(name) for name in sorted(tree.children[within])}
    kinds = {split for split in folders.values() if split}
    if "train" not in kinds or len(kinds) == 1:
        return {"train": items}, {}, []
    by_folder: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        name, slash, _ = item.name[len(within) :].partition("/")
        by_folder[f"{within}{name}{slash}"].append(item)
    strangers = [folder for folder in by_folder if not folders.get(folder)]
    same = [folder for folder, split in folders.items() if split and [*folders.values()].count(split) > 1]
    if strangers or same:
        problem = (
            f"{strangers[0]} lies beside the splits, and is none"
            if strangers
            else f"{' and '.join(same)} are one split"
        )
        fail(
            f"data.root={archive.path}: {top}labels.csv: {problem}; expected every image in train/ or"
            " test/, or no splits"
        )
    places = {split: folder for folder, split in folders.items() if split}
    test = "test" if "test" in places else "val"
    splits = {"train": by_folder[places["train"]], "test": by_folder[places[test]]}
    unknown = {item.label for item in splits["test"]} - {item.label for item in splits["train"]}
    if unknown:
        fail(f"data.root={archive.path}: class {classes[min(unknown)]} of the test split is not in the training split")
    others = [split for split in places if split not in ("train", test)]
    notes = [
        f"{len(by_folder[places[name]])} images of {places[name]}: {places[test]} is the test split" for name in others
    ]
    return splits, {"train": places["train"], "test": places[test]}, notes


# --- arrays ---


def _cifar_layout(archive: Archive, kind: str) -> Survey:
    if folder_of(archive, LAYOUTS[kind]) is None:
        layout = LAYOUTS[kind]
        fail(f"data.root={archive.path}: no {kind} batches (expected {layout.meta}, {layout.train[0]}, …)")
    batches = read_cifar(archive.path, kind)
    items = [
        Item(f"{batches.classes[label]}/{name}", label, row)
        for row, (label, name) in enumerate(zip(batches.labels, batches.names, strict=True))
    ]
    splits = {"train": items[: batches.train], "test": items[batches.train :]}
    return Survey(Source(archive.path, kind, tuple(batches.classes)), splits, kind)


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, list[int]]:
    """scikit-learn's handwritten digits: uint8 [1797, 8, 8] and labels; its 17 levels spread over 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), [int(label) for label in bunch.target]


def _digits_layout() -> Survey:
    items = [Item(f"digit-{row:04d}", label, row) for row, label in enumerate(_digits()[1])]
    return Survey(Source(None, "digits", tuple(map(str, range(10)))), {"train": items}, "digits")


# --- order and hold-out ---


def _sort_key(item: Item) -> tuple[str, str, int]:
    """Sorts the images of a class by a hash of the name, folder and suffix apart.

    So the order is the same however the images are packed.
    """
    return sha256(_stem(item.name).encode()).hexdigest(), item.name, item.row


def _stem(name: str) -> str:
    """As PurePosixPath's, of a name in normal form, without making a path of each of a million names."""
    last = name.rpartition("/")[2]
    dot = last.rfind(".")
    return last[:dot] if 0 < dot < len(last) - 1 else last


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
