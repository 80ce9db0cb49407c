"""How images lie in folders: splits, classes and wrappers recognised, and whatever is not recognised refused."""

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from maep.data.images.archives import Archive
from maep.data.images.decoding import HEAD, IMAGE_SUFFIXES, USUAL_SUFFIXES, begins_like_an_image
from maep.data.images.label_lists import class_order, read_label_list
from maep.data.images.text_files import composed
from maep.runtime.errors import fail

SPLIT_WORDS = {
    "train": "train training trn trainset trainingset",
    "test": "test testing tst testset testingset eval evaluation",
    "val": "val valid validation validate valset validset validationset dev devel development holdout",
}
SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words.split()}
# Words that say nothing of split or class: `train_images`, `val/images`, `dataset/train`.
FILLER = {
    "set", "data", "dataset", "datasets", "split", "splits", "images", "image", "imgs", "img", "pictures", "photos",
    "jpeg", "jpegimages", "jpg", "png",
}  # fmt: skip
# Folders of these names hold what belongs to images, and are no classes of them.
NO_CLASSES = FILLER | {
    "mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "segmentation", "bbox",
}  # fmt: skip
LABEL_LISTS = {
    "val": (
        "val_labels.csv", "val_labels.txt", "val.txt", "val.csv", "val_annotations.txt", "labels.csv", "labels.txt",
        "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt",
    ),
    "test": (
        "test_labels.csv", "test_labels.txt", "test.txt", "test.csv", "test_annotations.txt", "labels.csv",
        "labels.txt",
    ),
}  # fmt: skip
# Kinds of files that are no images, so that they need not be opened to find out.
NOT_IMAGES = {
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".py", ".ipynb", ".log",
    ".npy", ".npz", ".mat", ".pkl", ".pickle", ".h5", ".hdf5", ".db", ".ini", ".zip", ".tar", ".gz", ".tgz", ".bz2",
    ".xz", ".7z", ".rar", ".pt", ".pth", ".safetensors", ".parquet", ".arrow", ".tfrecord", ".mp4", ".avi", ".mov",
    ".pdf", ".lnk",
}  # fmt: skip
EXPECTED = (
    "expected train/CLASS/… and test/CLASS/… (or val/…), or CLASS/… alone, with two classes at least; or labels.csv"
    " (file,index)"
)
SIMILAR = 0.85  # likeness of words from which one is taken for a mistyped other: `trainning`, not `brain`


@dataclass(frozen=True)
class Inventory:
    """Names of an archive's images, how many other files there are by kind, and images that are hidden files."""

    images: list[str]
    others: Counter[str]
    hidden: list[str]


def inventory(archive: Archive) -> Inventory:
    """Images by suffix, or by how they begin where the suffix says nothing."""
    images = [name for name in archive.files if name.lower().endswith(IMAGE_SUFFIXES)]
    rest = [name for name in archive.files if not name.lower().endswith(IMAGE_SUFFIXES)]
    unclear = [name for name in rest if kind_of(name) not in NOT_IMAGES]
    more = {name for name in archive.in_cheap_order(unclear) if begins_like_an_image(archive.head(name, HEAD))}
    others = Counter(kind_of(name) for name in rest if name not in more)
    return Inventory(sorted([*images, *more]), others, sorted(filter(_is_hidden_image, archive.hidden)))


def _is_hidden_image(name: str) -> bool:
    """Whether a file that was left out is an image that its user may miss: no file manager's preview (`._x.png`), and
    in no hidden folder.
    """
    folder, _, last = name.rpartition("/")
    is_preview = last.startswith("._") or not last.startswith(".")
    return last.lower().endswith(IMAGE_SUFFIXES) and not is_preview and "/." not in f"/{folder}"


def kind_of(name: str) -> str:
    """The suffix of a file in lower case, or `(no suffix)`."""
    stem, dot, suffix = name.rpartition("/")[2].lower().rpartition(".")
    return f".{suffix}" if dot and stem else "(no suffix)"


def counted(kinds: Counter[str]) -> str:
    """`3 .png, 1 .xml`, the most common first."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def _words(name: str) -> list[str]:
    """`TrainSet_2017` as train, set, 2017."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", composed(name))
    return [word for word in re.split(r"[\W_]+|(?<=\D)(?=\d)|(?<=\d)(?=\D)", spaced.casefold()) if word]


def split_of(name: str) -> str | None:
    """`train`, `test` or `val` if a folder's name says so, in any case and the common spellings."""
    words = [word for word in _words(name) if word not in FILLER] if name else []
    joined = "".join(_words(name))
    return SPLIT_OF.get(words[0]) if len(words) == 1 else SPLIT_OF.get(joined)


def looks_like_a_split(name: str) -> bool:
    """Whether a word of the name is that of a split, or such a word mistyped."""
    words = _words(name)
    mistyped = (word for word in words if len(word) > 4 and difflib.get_close_matches(word, SPLIT_OF, 1, SIMILAR))
    return any(word in SPLIT_OF for word in words) or any(mistyped)


class Tree:
    """Images by folder; folders are written `""` or with a trailing `/`."""

    def __init__(self, images: Sequence[str]) -> None:
        self.flat: dict[str, list[str]] = defaultdict(list)
        self.children: dict[str, set[str]] = defaultdict(set)
        for name in images:
            folder = name[: name.rfind("/") + 1]
            new = folder not in self.flat
            self.flat[folder].append(name)
            while new and folder:
                above = folder[: folder.rstrip("/").rfind("/") + 1]
                self.children[above].add(folder[len(above) : -1])
                folder = above

    def is_flat(self, folder: str) -> bool:
        """Images lie right in it."""
        return folder in self.flat

    def below(self, folder: str) -> list[str]:
        """All images in it, however deep."""
        names: list[str] = []
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            names += self.flat.get(place, ())
            waiting += [f"{place}{child}/" for child in self.children.get(place, ())]
        return sorted(names)

    def inside(self, folder: str, stop: Sequence[str] = ()) -> str:
        """The folder within `folder` that is no mere wrapper: one that everything lies in.

        stop: names that are no wrappers. A split is none unless it holds splits, and a folder of images is none unless
        its name says nothing (`images`).
        """
        while not self.is_flat(folder) and len(self.children[folder]) == 1:
            (child,) = self.children[folder]
            below = f"{folder}{child}/"
            splits = [bool(split_of(name)) for name in self.children[below]]
            if child in stop or (split_of(child) and not (splits and all(splits)) and not _repeats(folder, child)):
                break
            if self.is_flat(below) and not (folder and set(_words(child)) <= FILLER):
                break
            folder = below
        return folder


def _repeats(folder: str, child: str) -> bool:
    """A split in itself: train/train/."""
    return split_of(folder.rstrip("/").rpartition("/")[2]) == split_of(child)


@dataclass(frozen=True)
class Folders:
    """Images by class and split, classes in the order of their labels, and what is to be said of it.

    places: the folder of each split. notes: what was left out, and why.
    """

    classes: list[str]
    splits: dict[str, dict[str, list[str]]]
    places: dict[str, str]
    notes: list[str]


class FolderLayout:
    """Reads {train,test|val}/class/…/image, or class/…/image; and a flat test or val folder with a list of labels."""

    def __init__(self, archive: Archive, images: Sequence[str]) -> None:
        self.archive = archive
        self.tree = Tree(images)
        self.top = self.tree.inside("")
        self.notes: list[str] = []

    def refuse(self, seen: str) -> NoReturn:
        """Raises UserError with what was seen and what is read."""
        fail(f"data.root={self.archive.path}: {seen}; {EXPECTED}")

    def read(self) -> Folders:
        """Raises UserError for whatever is not recognised."""
        places = self._places()
        if "train" in places and self.tree.is_flat(places["train"]):
            self.refuse(f"{places['train'] or 'top'}: images lie outside class folders")
        splits: dict[str, dict[str, list[str]]] = {}
        for split in sorted(places, reverse=True):  # train first: its classes tell what the positions in a list mean
            known = self._order(splits.get("train", {}))
            flat = self.tree.is_flat(places[split])
            splits[split] = self._by_list(places[split], known) if flat else self._by_folder(places[split])
        classes = self._common_classes(splits)
        return Folders(classes, splits, places, self.notes)

    # --- splits ---

    def _places(self) -> dict[str, str]:
        """`{split: folder}`, with `train` at the top where there are no splits."""
        names = self._below(self.top)
        groups: dict[str, list[str]] = defaultdict(list)
        for name in names:
            if split := split_of(name):
                groups[split].append(name)
        if not groups or self._are_classes(groups, names):
            self._check_no_splits([name for name in names if name in self.tree.children[self.top]])
            return {"train": self.top}
        for split, same in groups.items():
            if len(same) > 1:
                self.refuse(f"{' and '.join(sorted(same))} both are the {split} split")
        self._check_others([name for name in names if not split_of(name)], "train" in groups)
        places = {split: f"{self.top}{same[0]}/" for split, same in groups.items()}
        return self._chosen(places)

    def _are_classes(self, groups: dict[str, list[str]], names: list[str]) -> bool:
        """`train` with images in it, beside two other such folders at least, is a vehicle: bicycle, bus, train."""
        others = [name for name in names if not split_of(name)]
        train = list(groups) == ["train"] and groups["train"][0].casefold() == "train"
        return train and len(others) > 1 and all(self.tree.is_flat(f"{self.top}{name}/") for name in names)

    def _check_no_splits(self, names: list[str]) -> None:
        like = [name for name in names if looks_like_a_split(name)]
        unclear = [name for name in like if not self.tree.is_flat(f"{self.top}{name}/")]
        if unclear or (like and len(like) == len(names)):
            folders = ", ".join(f"{self.top}{name}/" for name in (unclear or like)[:3])
            self.refuse(f"{folders}: looks like a split, but is called like none")

    def _check_others(self, names: list[str], trains: bool) -> None:
        """What lies beside the splits: left out and said where it is a flat folder beside `train`, else refused."""
        for name in names:
            folder = f"{self.top}{name}/"
            images = self.tree.below(folder)
            flat = self.tree.is_flat(self.tree.inside(folder))
            if images and (looks_like_a_split(name) or not flat or not trains):
                self.refuse(f"{folder} with {len(images)} images lies beside the splits, and is none")
            if images:
                self.notes.append(f"{len(images)} images of {folder}, which is no split")
        if self.tree.is_flat(self.top):
            self.notes.append(f"{len(self.tree.flat[self.top])} images of {self.top or 'the top'}, beside the splits")

    def _chosen(self, places: dict[str, str]) -> dict[str, str]:
        """Of a test and a val split the one with class folders; of flat ones val, since test has no labels."""
        inner = {}
        for split, folder in places.items():
            if not self.tree.below(folder):
                self.refuse(f"{folder} has no images ({USUAL_SUFFIXES})")
            inner[split] = self.tree.inside(
                folder, sorted(self.tree.children[self.tree.inside(places.get("train", ""))])
            )
        tests = [split for split in ("test", "val") if split in inner]
        tests.sort(
            key=lambda split: (self.tree.is_flat(inner[split]), self.tree.is_flat(inner[split]) and split == "test")
        )
        for split in tests[1:]:
            count = len(self.tree.below(places[split]))
            self.notes.append(f"{count} images of {places[split]}: {places[tests[0]]} is the test split")
        self.list_kind = tests[0] if tests else "val"
        chosen = {"test": inner[tests[0]]} if tests else {}
        return {"train": inner["train"], **chosen} if "train" in inner else chosen

    # --- classes ---

    def _below(self, prefix: str) -> list[str]:
        """Names of the folders right below, empty ones among them."""
        folders = (name[len(prefix) :] for name in self.archive.folders if name.startswith(prefix))
        return sorted({name for name in folders if name and "/" not in name})

    def _by_folder(self, prefix: str) -> dict[str, list[str]]:
        """Images by class folder. Raises UserError for an empty one, and for folders that are no classes."""
        if self.tree.is_flat(prefix):
            self.refuse(f"{prefix or 'top'}: images lie outside class folders")
        classes = {name: self.tree.below(f"{prefix}{name}/") for name in self._below(prefix)}
        empty = [name for name, images in classes.items() if not images]
        if empty:
            fail(f"data.root={self.archive.path}: class folder {prefix}{empty[0]}/ has no images ({USUAL_SUFFIXES})")
        if all(set(_words(name)) and set(_words(name)) <= NO_CLASSES for name in classes):
            self.refuse(f"{prefix}{{{','.join(sorted(classes)[:4])}}}/ are no classes")
        self._check_subfolders(prefix, list(classes))
        return classes

    def _check_subfolders(self, prefix: str, classes: list[str]) -> None:
        """No splits below classes, and not the same folders in two of them (a wrapper such as `images` apart)."""
        owners: dict[str, list[str]] = defaultdict(list)
        for folder in self.tree.flat:
            parts = folder[len(prefix) :].rstrip("/").split("/") if folder.startswith(prefix) else []
            split = next((part for part in parts[1:] if split_of(part)), None)
            if split:
                self.refuse(f"{folder}: the split {split} lies below the folder {parts[0]}")
            if len(parts) > 1 and parts[0] not in owners[parts[1]]:
                owners[parts[1]].append(parts[0])
        same = {name: sorted(folders) for name, folders in owners.items() if len(folders) > 1}
        shared = [name for name in same if not set(_words(name)) <= FILLER]
        if shared:
            first, second = same[shared[0]][:2]
            self.refuse(
                f"{prefix}{first}/ and {prefix}{second}/ hold the same folder {shared[0]}/, so which are the classes is"
                " not clear"
            )

    def _order(self, folders: dict[str, list[str]]) -> list[str]:
        return class_order(list(folders), f"data.root={self.archive.path}")

    def _common_classes(self, splits: dict[str, dict[str, list[str]]]) -> list[str]:
        """Those of the training split where there is one; it must have those of the test split."""
        test = splits.get("test", {})
        classes = self._order(splits.get("train") or test)
        unknown = sorted(set(test) - set(classes))
        if unknown:
            fail(f"data.root={self.archive.path}: class {unknown[0]} of the test split is not in the training split")
        if len(classes) == 1:
            self.refuse(f"a single class, {classes[0]}")
        return classes

    # --- flat folders with a list ---

    def _by_list(self, prefix: str, classes: list[str]) -> dict[str, list[str]]:
        """Images of a flat folder by class, from the label lists in it and above (see `LABEL_LISTS`)."""
        files = self.tree.below(prefix)
        names = self._lists(prefix)
        if not names:
            lists = ", ".join(LABEL_LISTS[self.list_kind])
            fail(f"data.root={self.archive.path}: {prefix} is flat and has no label list; add one of {lists}")
        readings = [read_label_list(self.archive, name, classes).by_file(files, prefix) for name in names]
        labels, strangers = readings[0]
        if strangers:
            self.notes.append(f"{strangers} rows of {names[0]}, whose files are not there")
        images: dict[str, list[str]] = defaultdict(list)
        for file in files:
            if file not in labels:
                fail(f"data.root={self.archive.path}: {file}: {names[0]} gives no known class for it")
            for name, (others, _) in zip(names[1:], readings[1:], strict=True):
                if others.get(file, labels[file]) != labels[file]:
                    fail(
                        f"data.root={self.archive.path}: {file}: {labels[file]} in {names[0]}, {others[file]} in {name}"
                    )
            images[labels[file]].append(file)
        return dict(images)

    def _lists(self, prefix: str) -> list[str]:
        """In the split's folder and around it, up to the top of the archive."""
        folders = [prefix]
        while folders[-1]:
            folders.append(folders[-1][: folders[-1].rstrip("/").rfind("/") + 1])
        own = len(prefix.split("/")) - len(self.top.split("/"))  # the split's folder and the wrappers in it
        files = set(self.archive.files)
        kinds = LABEL_LISTS[self.list_kind]
        return [
            folder + name
            for depth, folder in enumerate(folders)
            for name in kinds
            if folder + name in files and (depth < own or not name.startswith("labels."))
        ]
