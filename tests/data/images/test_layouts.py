"""Layouts: splits in every spelling, wrappers stripped, and what is not recognised refused with what was seen."""

import unicodedata
from pathlib import Path

import pytest

from maep.config.data_settings import DataSettings
from maep.data.images.layouts import looks_like_a_split, split_of
from maep.data.images.sources import open_source, survey
from maep.runtime.errors import UserError
from tests.data.images.test_sources import labels_by_stem, opened, write_images


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training", "Training_Set", "train_images", "trn"])
@pytest.mark.parametrize(
    "test", ["Test", "val", "VALID", "Validation", "testing", "Eval", "dev", "test-set", "holdout"]
)
def test_spellings_of_splits(tmp_path: Path, train: str, test: str) -> None:
    """No spelling turns test images into training ones."""
    write_images(tmp_path, [f"{train}/cat/a.png", f"{train}/dog/b.png", f"{test}/cat/c.png", f"{test}/dog/d.png"])
    source, splits = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert labels_by_stem(splits, "train") == {"a": 0, "b": 1}
    assert labels_by_stem(splits, "test") == {"c": 0, "d": 1}


@pytest.mark.parametrize("wrapper", ["x", "archive/imagenette2", "a/b/c/Data", "images", "Train", "data/Images/X"])
def test_wrappers_are_stripped(tmp_path: Path, wrapper: str) -> None:
    """Single folders around everything, however deep and whatever their name; around a split too."""
    names = ["train/train/cat/a.png", "train/train/dog/b.png", "val/val/cat/c.png", "val/val/dog/d.png"]
    write_images(tmp_path, [f"{wrapper}/{name}" for name in names])
    source, splits = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert labels_by_stem(splits, "train") == {"a": 0, "b": 1}
    assert labels_by_stem(splits, "test") == {"c": 0, "d": 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["Images/X/train/a.png", "Images/X/test/b.png", "Images/Y/train/c.png"],
            "the split .* lies below the folder X",
        ),
        (["cat/train/a.png", "cat/test/b.png", "dog/Train/c.png"], "the split .* lies below the folder cat"),
        (["a/left/1.png", "a/right/2.png", "b/left/3.png", "b/right/4.png"], "hold the same folder"),
        (["fold1/cat/1.png", "fold1/dog/2.png", "fold2/cat/3.png"], "hold the same folder cat/"),
        (["train2017/1.png", "val2017/2.png"], "looks like a split, but is called like none"),
        (["trainA/1.png", "trainB/2.png", "testA/3.png"], "looks like a split"),
        (["trainning/cat/1.png", "trainning/dog/2.png", "other/x/3.png"], "looks like a split"),
        (["train/1.png", "test/2.png"], "images lie outside class folders"),
        (["train/cat/1.png", "train/dog/2.png", "train/3.png"], "images lie outside class folders"),
        (["train/cat/1.png", "train/dog/2.png", "final_test_v2/cat/3.png"], "lies beside the splits"),
        (["train/cat/1.png", "train/dog/2.png", "more/cat/3.png", "more/dog/4.png"], "lies beside the splits"),
        (["train/cat/1.png", "train/dog/2.png", "Train/cat/3.png"], "both are the train split"),
        (["train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "valid/cat/4.png"], "both are the val split"),
        (["cat/1.png", "dog/2.png", "test/3.png"], "lies beside the splits"),
        (["train/images/1.png", "train/masks/2.png"], "are no classes"),
        (["images/1.png", "images/2.png"], "are no classes"),
        (["1.png", "2.png"], "images lie outside class folders"),
        (["cat/1.png"], "a single class, cat"),
        (["train/cat/1.png", "test/cat/2.png"], "a single class, cat"),
    ],
)
def test_what_is_not_recognised_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    """With what was seen and what is expected, in one line."""
    write_images(tmp_path, names)
    with pytest.raises(UserError, match=rf"{message}.*expected train/CLASS") as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    """It was meant to hold something."""
    write_images(tmp_path, ["train/cat/1.png", "train/dog/2.png"])
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="test/ has no images"):
        opened(tmp_path)


def test_train_may_be_a_class(tmp_path: Path) -> None:
    """In a set of vehicles, and below the splits, as in CIFAR-100."""
    write_images(tmp_path / "flat", ["bicycle/1.png", "bus/2.png", "train/3.png"])
    assert opened(tmp_path / "flat")[0].classes == ("bicycle", "bus", "train")
    write_images(tmp_path / "split", ["train/train/1.png", "train/test tube/2.png", "test/train/3.png"])
    source, splits = opened(tmp_path / "split")
    assert source.classes == ("test tube", "train")
    assert labels_by_stem(splits, "test") == {"3": 1}


def test_names_are_compared_in_one_form(tmp_path: Path) -> None:
    """The same class, composed in one split and decomposed in the other."""
    decomposed = unicodedata.normalize("NFD", "Bär")
    write_images(tmp_path, ["train/Bär/1.png", "train/Zebra/2.png", f"test/{decomposed}/3.png"])
    source, splits = opened(tmp_path)
    assert source.classes == ("Bär", "Zebra")
    assert labels_by_stem(splits, "test") == {"3": 0}
    assert source.image(splits["test"][0]).size == (12, 10)


def test_tiny_imagenet(tmp_path: Path) -> None:
    """Class folders with `images` in them, val with a list of tabs, an unlabelled test."""
    names = ["train/n01/images/n01_0.JPEG", "train/n02/images/n02_0.JPEG", "val/images/v0.JPEG", "val/images/v1.JPEG"]
    write_images(tmp_path / "tiny-imagenet-200", [*names, "test/images/t0.JPEG"])
    top = tmp_path / "tiny-imagenet-200"
    (top / "wnids.txt").write_text("n02\nn01\n")
    (top / "val" / "val_annotations.txt").write_text("v0.JPEG\tn02\t0\t0\t6\t6\nv1.JPEG\tn01\t0\t0\t6\t6\n")
    understood = survey(DataSettings(root=str(tmp_path), format="auto"))
    assert understood.source.classes == ("n01", "n02")
    assert labels_by_stem(understood.splits, "train") == {"n01_0": 0, "n02_0": 1}
    assert labels_by_stem(understood.splits, "test") == {"v0": 1, "v1": 0}
    lines = understood.lines()
    assert "train 2 images (tiny-imagenet-200/train/), test 2 images (tiny-imagenet-200/val/images/)" in lines[0]
    assert lines[1] == "2 classes, label and name: 0 n01, 1 n02"
    assert lines[2].startswith("left out: 1 images of tiny-imagenet-200/test/")
    assert lines[2].endswith("2 .txt (no images)")


def test_kaggle_imagenet(tmp_path: Path) -> None:
    """The images below ILSVRC/Data/CLS-LOC, the list of labels at the top."""
    below = "ILSVRC/Data/CLS-LOC"
    write_images(
        tmp_path,
        [f"{below}/train/n01/a.JPEG", f"{below}/train/n02/b.JPEG", f"{below}/val/V_1.JPEG", f"{below}/test/T.JPEG"],
    )
    (tmp_path / "ILSVRC" / "ImageSets").mkdir()
    (tmp_path / "ILSVRC" / "ImageSets" / "val.txt").write_text("V_1 1\n")
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nV_1,n02 1 2 3 4 \n")
    assert labels_by_stem(opened(tmp_path)[1], "test") == {"V_1": 1}


def test_split_names() -> None:
    """What is a split, what only looks like one, and what is neither."""
    assert {split_of(name) for name in ("TrainSet", "train-images", "TRAINING")} == {"train"}
    assert {split_of(name) for name in ("bullet_train", "train2017", "trainA", "brain", "")} == {None}
    assert all(map(looks_like_a_split, ("train2017", "my_test", "validaton", "trainA")))
    assert not any(map(looks_like_a_split, ("brain", "terrain", "text", "cat")))


def test_kinds_are_read_and_counted(tmp_path: Path) -> None:
    """Every kind that Pillow reads, also under a wrong name or none; the rest is counted."""
    kinds = ["png", "jpg", "bmp", "gif", "tif", "jp2", "ppm", "pgm", "tga", "ico", "webp", "jfif"]
    images = write_images(tmp_path, [f"a/{kind}.{kind}" for kind in kinds] + ["b/x.png", "b/y.png"])
    (tmp_path / "a" / "png.png").rename(tmp_path / "a" / "nameless")
    (tmp_path / "b" / "y.png").rename(tmp_path / "b" / "y.dat")
    (tmp_path / "a" / "movie.mp4").write_bytes(b"x")
    (tmp_path / "a" / "vector.svg").write_text("<svg/>")
    understood = survey(DataSettings(root=str(tmp_path), format="auto", test_fraction=0.0))
    items = understood.splits["train"]
    assert len(items) == len(images)
    for item in items:
        assert understood.source.image(item).mode == "RGB", item.name
    assert understood.notes == ("1 .mp4, 1 .svg (no images)",)
    assert "1 (no suffix)" in understood.lines()[0]


def test_no_images_says_what_is_there(tmp_path: Path) -> None:
    """So that its owner sees why."""
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"no images .*; it holds 1 \.parquet"):
        open_source(DataSettings(root=str(tmp_path), format="auto"))
