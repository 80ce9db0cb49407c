"""What is twice in a data set: test images that are trained on, and images of two classes."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maep.config.load import load_settings
from maep.data.images.build import build_shards, describe_source


def picture(path: Path, seed: int) -> None:
    """Random pixels, the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three images in each of both splits, all different."""
    names = [f"{split}/{kind}/{n}.png" for split in ("train", "test") for kind in ("cat", "dog") for n in range(3)]
    for seed, name in enumerate(names):
        picture(tmp_path / "data" / name, seed)
    return tmp_path / "data"


def said(folder: Path, capsys: pytest.CaptureFixture[str], encoding: str = "png") -> str:
    """What building shards of it says."""
    words = [f"data.root={folder}", "data.workers=0", f"data.encoding={encoding}", "data.image_size=32"]
    build_shards(load_settings(None, [*words, f"run.cache={folder.parent / 'cache'}"]))
    return capsys.readouterr().out


def test_different_images_are_worth_no_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is said where nothing is twice."""
    assert "warning" not in said(folder, capsys)


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_training_images_among_the_test_images_are_counted(
    encoding: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever their names and their format: pixels count."""
    shutil.copy(folder / "train/cat/0.png", folder / "test/cat/other.png")
    Image.open(folder / "train/dog/1.png").save(folder / "test/dog/again.bmp")
    assert "warning: 2 of 8 test images are training images too (train sample " in said(folder, capsys, encoding)


def test_a_linked_class_gives_its_images_two_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder is read where a link to it lies, too."""
    os.symlink("cat", folder / "train/kitten")
    text = said(folder, capsys)
    assert "warning: 6 images are there with several labels" in text
    assert ": cat and kitten); leave one of each" in text


def test_the_same_checksum_is_not_the_same_image(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10^11 pairs of raw images some have it by chance: pixels decide."""
    monkeypatch.setattr("maep.data.images.repeated._keys", lambda shards: np.zeros(len(shards), dtype=np.int64))
    shutil.copy(folder / "train/cat/0.png", folder / "test/cat/other.png")
    assert "warning: 1 of 7 test images are" in said(folder, capsys, "raw")


def test_hidden_images_and_packed_ones_are_said(folder: Path) -> None:
    """Both are left out; what a file manager leaves behind is no image."""
    picture(folder / "train/cat/.mine.png", 50)
    for clutter in ("train/cat/._0.png", "train/.thumbnails/0.png", "__MACOSX/train/cat/._0.png"):
        picture(folder / clutter, 51)
    (folder / "train/cat/more.zip").write_bytes(b"PK")
    *_, left_out = describe_source(load_settings(None, [f"data.root={folder}", "data.image_size=32"]))
    assert left_out == (
        "left out: 1 .zip (no images; unpack the archives among them, each into the folder of its class);"
        " 1 hidden images (train/cat/.mine.png, …)"
    )
