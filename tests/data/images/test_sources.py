"""Images in: every layout gives the right images, labels and splits, and bad input is named."""

import io
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from maep.config.data_settings import DataSettings
from maep.data.images.cifar import read_pickle
from maep.data.images.sources import Item, Source, Splits, _stem, balanced, hold_out, open_source
from maep.runtime.errors import UserError


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """A random RGB image, width × height."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def write_images(root: Path, names: list[str]) -> dict[str, Image.Image]:
    """A lossless image under each name; returns them by name."""
    images = {name: picture(number) for number, name in enumerate(names)}
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, **({"lossless": True} if name.endswith("webp") else {}))
    return images


def pack(folder: Path, kind: str) -> Path:
    """The folder itself, or a .zip, .tar or .tar.gz of it with one folder at its top."""
    if kind == "directory":
        return folder
    target = folder.parent / f"packed.{kind}"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for path in files:
                archive.write(path, Path("top") / path.relative_to(folder))
    else:
        with tarfile.open(target, "w:gz" if kind.endswith("gz") else "w") as archive:
            archive.add(folder, "top")
    return target


def opened(root: Path, **settings: object) -> tuple[Source, Splits]:
    return open_source(DataSettings(root=str(root), format=str(settings.pop("format", "auto")), **settings))  # type: ignore[arg-type]


def labels_by_stem(splits: Splits, split: str) -> dict[str, int]:
    return {Path(item.name).stem: item.label for item in splits[split]}


# --- class folders ---

FOLDERS = ["train/cat/a.png", "train/cat/b.webp", "train/dog/c.png", "train/dog/sub/d.PNG", "test/dog/e.png"]


@pytest.mark.parametrize("kind", ["directory", "zip", "tar", "tar.gz"])
def test_class_folders_however_packed(tmp_path: Path, kind: str) -> None:
    """A directory, .zip, .tar and .tar.gz of class folders give the same pixels, labels, splits and order."""
    images = write_images(tmp_path / "data", [*FOLDERS, "test/cat/f.png"])
    (tmp_path / "data" / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "data" / "README").write_text("no folder")
    source, splits = opened(pack(tmp_path / "data", kind))
    assert source.classes == ("cat", "dog")
    assert labels_by_stem(splits, "train") == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert labels_by_stem(splits, "test") == {"e": 1, "f": 0}
    by_stem = {Path(name).stem: image for name, image in images.items()}
    for item in splits["train"] + splits["test"]:
        assert np.array_equal(source.image(item), by_stem[Path(item.name).stem]), item.name
    order = [Path(item.name).stem for item in splits["train"]]
    _, plain = opened(tmp_path / "data")
    assert order == [Path(item.name).stem for item in plain["train"]]


def test_no_splits_and_one_class(tmp_path: Path) -> None:
    """Class folders without splits are the training images; a single class is no classification."""
    write_images(tmp_path / "two", ["cat/a.png", "dog/b.png"])
    source, splits = opened(tmp_path / "two", test_fraction=0.0)
    assert source.classes == ("cat", "dog")
    assert set(splits) == {"train"}
    assert len(splits["train"]) == 2
    write_images(tmp_path / "one", ["cat/a.png", "cat/b.png"])
    with pytest.raises(UserError, match="a single class, cat; expected train/CLASS"):
        opened(tmp_path / "one")


def test_modes_become_rgb(tmp_path: Path) -> None:
    """Grey, 16-bit grey, palette, transparent and CMYK images become 8-bit RGB of the same values."""
    folder = tmp_path / "c"
    folder.mkdir()
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(grey).convert("RGBA").save(folder / "alpha.png")
    picture(0).convert("P").save(folder / "palette.png")
    picture(0).convert("CMYK").save(folder / "cmyk.jpg")
    write_images(tmp_path, ["d/other.png"])
    source, splits = opened(tmp_path, test_fraction=0.0)
    read = {item.name: np.asarray(source.image(item)) for item in splits["train"]}
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in read.values())
    for name in ("grey", "deep", "alpha"):
        assert np.array_equal(read[f"c/{name}.png"], np.stack([grey] * 3, axis=2)), name


@pytest.mark.parametrize("kind", ["directory", "zip", "tar"])
def test_empty_class_folder_is_named(tmp_path: Path, kind: str) -> None:
    """A class folder without images is refused by its name, in a directory and in archives."""
    write_images(tmp_path / "data", FOLDERS)
    (tmp_path / "data" / "train" / "eel").mkdir()
    root = pack(tmp_path / "data", kind)
    if kind == "zip":
        with zipfile.ZipFile(root, "a") as archive:
            archive.mkdir("top/train/eel")
    with pytest.raises(UserError, match=r"class folder (top/)?train/eel/ has no images"):
        opened(root)


def test_missing_damaged_and_unknown_roots(tmp_path: Path) -> None:
    """A root that is unset, missing, of no known kind, damaged or without images is refused, naming it."""
    with pytest.raises(UserError, match=r"data\.root: not set"):
        open_source(DataSettings(format="auto"))
    with pytest.raises(UserError, match=r"nowhere: No such file"):
        opened(tmp_path / "nowhere")
    (tmp_path / "x.rar").write_bytes(b"x")
    with pytest.raises(UserError, match=r"x\.rar: must be a directory, \.zip or \.tar"):
        opened(tmp_path / "x.rar")
    for name in ("x.zip", "x.tar"):
        (tmp_path / name).write_bytes(b"nonsense" * 200)
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            opened(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        opened(tmp_path / "empty")
    with pytest.raises(UserError, match="digits brings its own images"):
        opened(tmp_path, format="digits")


@pytest.mark.parametrize("kind", ["directory", "zip", "tar"])
def test_corrupt_image_is_named(tmp_path: Path, kind: str) -> None:
    """An image that is cut short, or no image at all, is refused by its name."""
    write_images(tmp_path / "data", ["cat/whole.png", "dog/other.png"])
    folder = tmp_path / "data" / "cat"
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:-60])
    (folder / "text.jpg").write_text("not an image")
    (folder / "zero.webp").write_bytes(b"")
    source, splits = opened(pack(tmp_path / "data", kind), test_fraction=0.0)
    items = {Path(item.name).stem: item for item in splits["train"]}
    for stem in ("whole", "other"):
        source.image(items.pop(stem))
    for stem, item in items.items():
        with pytest.raises(UserError, match=rf"cat/{stem}\.\w+: corrupt image: "):
            source.image(item)


def test_class_only_in_test_is_refused(tmp_path: Path) -> None:
    """A test class that training does not know has no label."""
    write_images(tmp_path, ["train/cat/a.png", "val/dog/b.png"])
    with pytest.raises(UserError, match="class dog of the test split is not in the training split"):
        opened(tmp_path)


# --- ImageNet's layout ---


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("val_labels.csv", "file,label\nv1.png,n02\nv2.png,n01\n"),
        ("val.txt", "v1.png 1\nv2.png 0\n"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\nv2,n01 1 2 3 4\nv1,n02 5 6 7 8 n02 1 1 1 1\n"),
        ("imagenet_2012_validation_synset_labels.txt", "n02\nn01\n"),
    ],
)
def test_flat_validation_folder(tmp_path: Path, name: str, text: str) -> None:
    """ImageNet's flat val/ takes its labels from any of the usual lists; the unlabelled flat test/ is left."""
    write_images(tmp_path, ["train/n01/a.png", "train/n02/b.png", "val/v1.png", "val/v2.png", "test/t1.png"])
    with pytest.raises(UserError, match=r"val/ is flat and has no label list; add one of val_labels\.csv"):
        opened(tmp_path, format="imagenet")
    (tmp_path / name).write_text(text)
    source, splits = opened(tmp_path, format="imagenet")
    assert source.classes == ("n01", "n02")
    assert labels_by_stem(splits, "test") == {"v1": 1, "v2": 0}


def test_flat_validation_folder_with_gaps(tmp_path: Path) -> None:
    """A file that the list does not know, or a list of another length, is refused."""
    write_images(tmp_path, ["train/n01/a.png", "train/n02/b.png", "val/v1.png", "val/v2.png"])
    (tmp_path / "val.txt").write_text("v1.png n01\n")
    with pytest.raises(UserError, match=r"val/v2\.png: val\.txt gives no known class"):
        opened(tmp_path)
    (tmp_path / "val.txt").write_text("n01\n")
    with pytest.raises(UserError, match=r"val\.txt has 1 lines for the 2 images"):
        opened(tmp_path)


# --- labels.csv ---


@pytest.mark.parametrize("kind", ["directory", "tar", "zip"])
def test_labels_csv(tmp_path: Path, kind: str) -> None:
    """labels.csv gives files, labels and class names; indices without a name keep their place."""
    write_images(tmp_path / "data", ["a.png", "b.png", "deep/c.png"])
    rows = "file,index,wnid,name\na.png,0,n01,tench\nb.png,2,n03,shark\ndeep/c.png,0,n01,tench\n"
    (tmp_path / "data" / "labels.csv").write_text(rows)
    source, splits = opened(pack(tmp_path / "data", kind), test_fraction=0.0)
    assert source.classes == ("tench", "1", "shark")
    assert labels_by_stem(splits, "train") == {"a": 0, "b": 2, "c": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,0\n", "must have the columns file, index"),
        ("file,index\nb.png,0\n", r"line 2: no such file b\.png"),
        ("file,index\na.png,0\na.png,x\n", "line 3: index 'x' is not a whole number"),
    ],
)
def test_bad_labels_csv(tmp_path: Path, text: str, message: str) -> None:
    """Missing columns, missing files and bad indices are named with their line."""
    write_images(tmp_path, ["a.png"])
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_imagenet_sample(shared_data: Path) -> None:
    """The 1,000 ImageNet images, one a class, split in halves that share no class."""
    source, splits = opened(shared_data / "imagenet-sample.tar", test_fraction=0.5)
    assert source.classes[0] == "tench, Tinca tinca"
    assert len(source.classes) == 1000
    assert [len(splits[name]) for name in ("train", "test")] == [500, 500]
    assert {item.label for item in splits["train"] + splits["test"]} == set(range(1000))
    assert min(source.image(splits["test"][0]).size) == 256


# --- CIFAR's pickles ---


class Python2Pickler(pickle._Pickler):  # type: ignore[misc]
    """Writes bytes as Python 2 wrote its strings, which is what CIFAR's files hold."""

    def _save_bytes(self, value: bytes) -> None:
        self.write(b"T" + len(value).to_bytes(4, "little") + value)

    def _save_text(self, value: str) -> None:
        self._save_bytes(value.encode("latin1"))

    dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: _save_bytes, str: _save_text}  # type: ignore[attr-defined]


def python2_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core", b"numpy.core")


def write_cifar(folder: Path, kind: str, each: int = 4) -> np.ndarray:
    """CIFAR batches of `each` random images; returns all pixels, uint8 [N, 3072]."""
    rng = np.random.default_rng(0)
    names = ["apple", "bear", "cat"]
    parts = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"] if kind == "cifar10" else ["train", "test"]
    meta, key = ("batches.meta", "label_names") if kind == "cifar10" else ("meta", "fine_label_names")
    folder.mkdir()
    (folder / meta).write_bytes(python2_pickle({key: names}))
    pixels = rng.integers(0, 256, (each * len(parts), 3072), dtype=np.uint8)
    for number, part in enumerate(parts):
        batch = {
            "data": pixels[number * each : (number + 1) * each],
            "labels" if kind == "cifar10" else "fine_labels": [row % 3 for row in range(each)],
            "filenames": [f"{part}_{row}.png" for row in range(each)],
        }
        (folder / part).write_bytes(python2_pickle(batch))
    return pixels


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("packed", ["directory", "tar.gz"])
def test_cifar_batches(tmp_path: Path, kind: str, packed: str) -> None:
    """CIFAR's own files, as Python 2 wrote them, give every image in the right split with its label."""
    pixels = write_cifar(tmp_path / "batches", kind)
    source, splits = opened(pack(tmp_path / "batches", packed))
    assert source.classes == ("apple", "bear", "cat")
    assert len(splits["test"]) == 4
    assert len(splits["train"]) == len(pixels) - 4
    for item in splits["train"] + splits["test"]:
        assert np.array_equal(source.image(item), pixels[item.row].reshape(3, 32, 32).transpose(1, 2, 0))
        assert item.label == item.row % 4 % 3
    assert all(item.name.split("/")[1].startswith("test") for item in splits["test"])


class Malicious:
    """Pickles to a call that would create a file."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def test_pickles_cannot_execute(tmp_path: Path) -> None:
    """A batch that asks for any function or class is refused, by name, and nothing of it runs."""
    write_cifar(tmp_path / "batches", "cifar10")
    victim = tmp_path / "victim"
    for attack in (
        Malicious(os.system, f"touch {victim}"),
        Malicious(eval, f"open({str(victim)!r}, 'w')"),
        Malicious(subprocess.Popen, ["touch", str(victim)]),
        {"data": Malicious(getattr, b"", "join")},
        Malicious(Path, str(victim)),
    ):
        (tmp_path / "batches" / "data_batch_3").write_bytes(pickle.dumps(attack, protocol=2))
        with pytest.raises(UserError, match=r"data_batch_3: refused: it asks for .*; only NumPy arrays are allowed"):
            opened(tmp_path / "batches", format="cifar10")
    assert not victim.exists()


def test_damaged_and_missing_batches(tmp_path: Path) -> None:
    """A pickle cut short, a batch without images and a missing batch are named."""
    write_cifar(tmp_path / "batches", "cifar10")
    whole = (tmp_path / "batches" / "test_batch").read_bytes()
    with pytest.raises(UserError, match="there: refused: "):
        read_pickle(whole[: len(whole) // 2], "there")
    (tmp_path / "batches" / "test_batch").write_bytes(python2_pickle({"labels": [0]}))
    with pytest.raises(UserError, match="test_batch: not a CIFAR batch"):
        opened(tmp_path / "batches", format="cifar10")
    (tmp_path / "batches" / "data_batch_4").unlink()
    with pytest.raises(UserError, match="data_batch_4: missing from the cifar10 batches"):
        opened(tmp_path / "batches")
    with pytest.raises(UserError, match="no cifar100 batches"):
        opened(tmp_path / "batches", format="cifar100")


# --- digits, order, hold-out ---


def test_digits() -> None:
    """scikit-learn's digits: 1,797 images of ten classes, a fifth of each class held out."""
    source, splits = open_source(DataSettings(format="digits"))
    assert len(splits["train"]) + len(splits["test"]) == 1797
    held = Counter(item.label for item in splits["test"])
    kept = Counter(item.label for item in splits["train"])
    assert all(abs(held[label] - 0.2 * (held[label] + kept[label])) < 1 for label in range(10))
    image = np.asarray(source.image(splits["train"][0]))
    assert image.shape == (8, 8, 3)
    assert image.max() == 255


def test_every_prefix_is_balanced() -> None:
    """Classes take turns, so no prefix has two more of one class than of another that still has images."""
    order = balanced([Item(f"{label}/{n}.png", label) for label in range(4) for n in range(5)])
    for length in range(len(order) + 1):
        counts = Counter(item.label for item in order[:length])
        assert max(counts[c] for c in range(4)) - min(counts[c] for c in range(4)) <= 1


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 1.0])
def test_hold_out_is_a_partition(fraction: float) -> None:
    """Held-out images and the rest are all images, each once; the total is exact, each class within one."""
    sizes = [1, 1, 1, 7, 10]
    items = [Item(f"{label}/{n}.png", label) for label, size in enumerate(sizes) for n in range(size)]
    splits = hold_out(items, list("abcde"), fraction)
    assert sorted(splits["train"] + splits["test"], key=str) == sorted(items, key=str)
    assert len(splits["test"]) == round(fraction * len(items))
    held = Counter(item.label for item in splits["test"])
    assert all(abs(held[label] - fraction * size) < 1 for label, size in enumerate(sizes))


@pytest.mark.parametrize(
    "name", ["a/b.png", "a.b/c", "c", ".hidden", "a/.hidden.png", "b.tar.gz", "b.", "..b", "é.x/y.z"]
)
def test_order_goes_by_the_stem(name: str) -> None:
    """The order of every data set hangs on it, so it is what it has been."""
    assert _stem(name) == PurePosixPath(name).stem


def listed(root: Path, names: list[str], header: str = "file,index", more: str = "") -> Path:
    """Images with a labels.csv, of two classes in turn."""
    write_images(root, names)
    rows = [f"{name},{number % 2}{more}" for number, name in enumerate(names)]
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def test_listed_images_in_split_folders_keep_their_splits(tmp_path: Path) -> None:
    """Images of test/ are not trained on because a list at the top labels those of train/ too."""
    train, test, val = ([f"{split}/{split}{number}.png" for number in range(4)] for split in ("train", "test", "val"))
    for name, names, other in (("a", train + test, test), ("b", train + val, val), ("c", train + test + val, test)):
        source, splits = opened(listed(tmp_path / name, names))
        assert {item.name for item in splits["train"]} == set(train)
        assert {item.name for item in splits["test"]} == set(other)
        assert source.classes == ("0", "1")
    _, splits = opened(listed(tmp_path / "d", train), test_fraction=0.5)
    assert len(splits["test"]) == 2, "a single folder says no split"
    _, splits = opened(
        listed(tmp_path / "e", ["bus/0.png", "bus/1.png", "car/2.png", "train/3.png"]), test_fraction=0.5
    )
    assert len(splits["train"]) == 2, "a vehicle"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/0.png", "train/1.png", "test/2.png", "test/3.png", "4.png", "5.png"], "lies beside the splits"),
        (["train/0.png", "train/1.png", "test/2.png", "test/3.png", "more/4.png"], "more/ lies beside the splits"),
        (["train/0.png", "Train_set/1.png", "test/2.png", "test/3.png"], "Train_set/ and train/ are one split"),
        (["train/0.png", "train/2.png", "test/1.png"], "class 1 of the test split is not in the training split"),
    ],
)
def test_listed_images_whose_split_is_not_clear(tmp_path: Path, names: list[str], message: str) -> None:
    """Refused, with what was seen."""
    write_images(tmp_path, names)
    rows = [f"{name},{int(Path(name).stem) % 2}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["file,index", *rows]) + "\n")
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_a_column_that_says_the_split_is_not_passed_over(tmp_path: Path) -> None:
    """Its test images would be trained on; a column of anything else is the author's."""
    write_images(tmp_path, [f"{number}.png" for number in range(4)])
    text = "file,index,set,size\n0.png,0,Train,3\n1.png,1,train,4\n2.png,0,valid,5\n3.png,1,TEST,6\n"
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=r"labels\.csv: column set: says which split .*Train, train, valid"):
        opened(tmp_path)
    (tmp_path / "labels.csv").write_text(text.replace("valid", "left").replace("TEST", "right"))
    opened(tmp_path)
