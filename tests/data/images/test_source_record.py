"""Shards belong to the images that they were built from: a changed source is noticed."""

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maep.cli.shard_commands import main as shards
from maep.data.images import build
from maep.data.images import source_record as source_record_module
from maep.data.images.build import build_shards, clean_shards_path, shards_are_outdated
from maep.data.images.source_record import source_record
from maep.data.shards import ShardSet
from maep.runtime.errors import UserError
from tests.data.images.test_build import arguments, configured, tree, write_folders


def add(root: Path) -> None:
    shutil.copy(root / "a" / "a0.png", root / "a" / "new.png")


def remove(root: Path) -> None:
    (root / "b" / "b1.png").unlink()


def replace(root: Path) -> None:
    Image.fromarray(np.zeros((20, 23, 3), np.uint8)).save(root / "c" / "c2.png")


def rename(root: Path) -> None:
    (root / "a").rename(root / "z")


@pytest.mark.parametrize("change", [add, remove, replace, rename])
def test_a_changed_directory_is_built_again(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Into the shards that a fresh cache would hold; the old ones are kept, and come back with the old images."""
    root = write_folders(tmp_path / "data")
    before = shutil.copytree(root, tmp_path / "before")
    settings = configured(tmp_path / "c", root)
    path = build_shards(settings)
    old = tree(path)
    assert not shards_are_outdated(settings)
    change(root)
    assert shards_are_outdated(settings)
    assert build_shards(settings) == path
    assert not shards_are_outdated(settings)
    assert tree(path) == tree(build_shards(configured(tmp_path / "fresh", root)))
    assert tree(path) != old
    aside = [entry for entry in path.parent.iterdir() if entry.name.startswith(f"{path.name}-")]
    assert [tree(entry) for entry in aside] == [{k: v for k, v in old.items() if not k.startswith(".")}]
    shutil.rmtree(root)
    shutil.copytree(before, root)
    for file in before.rglob("*"):
        os.utime(root / file.relative_to(before), ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    build_shards(settings)
    assert tree(path) == old


def test_a_replaced_zip_is_built_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under the same path, with other images; the change is said."""
    file = tmp_path / "data.zip"
    for each in (4, 5):
        root = write_folders(tmp_path / str(each), each=each)
        with zipfile.ZipFile(file, "w") as archive:
            for image in sorted(root.rglob("*.png")):
                archive.write(image, image.relative_to(root))
        path = build_shards(configured(tmp_path / "c", file, "data.test_fraction=0.0"))
        assert len(ShardSet(path / "train")) == 3 * each
    assert "data.zip: not what the shards were built from" in " ".join(capsys.readouterr().out.split())


def test_new_times_alone_give_the_same_bytes(tmp_path: Path) -> None:
    """So nothing that was made of the shards is made again."""
    root = write_folders(tmp_path / "data")
    settings = configured(tmp_path / "c", root)
    old = tree(build_shards(settings))
    os.utime(root / "a" / "a0.png", (1, 1))
    assert tree(build_shards(settings)) == old


def test_what_was_built_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards without a record, and shards whose source is gone, are used as they are; later changes are noticed."""
    root = write_folders(tmp_path / "data")
    settings = configured(tmp_path / "c", root)
    path = build_shards(settings)
    source_record(path).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(build, "_build_split", lambda *_: pytest.fail("built again"))
        build_shards(settings)
        assert source_record(path).exists()
        shutil.move(root, tmp_path / "elsewhere")
        assert not shards_are_outdated(settings)
        assert build_shards(settings) == path
    shutil.move(tmp_path / "elsewhere", root)
    add(root)
    assert shards_are_outdated(settings)


def test_numbered_classes_in_the_order_of_text_are_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their labels were wrong: 0, 1, 10, 2."""
    root = write_folders(tmp_path / "data")
    for old, new in zip("abc", ("1", "10", "2"), strict=True):
        (root / old).rename(root / new)
    settings = configured(tmp_path / "c", root)
    with monkeypatch.context() as patch:
        patch.setattr("maep.data.images.layouts.class_order", lambda names, _: sorted(names))
        path = build_shards(settings)
    source_record(path).unlink()
    assert ShardSet(path / "train").classes == ["1", "10", "2"]
    build_shards(settings)
    assert ShardSet(path / "train").classes == ["1", "2", "10"]
    assert "numbered classes were in the order of text" in " ".join(capsys.readouterr().out.split())


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what was understood, or refuses as a build would."""
    root = write_folders(tmp_path / "data")
    (root / "a" / "a0.xml").write_text("<x/>")
    cache = tmp_path / "cache"
    assert shards(["build", "--dry-run", *arguments(cache, root)]) == 0
    out = capsys.readouterr().out
    assert "layout folders: train 19 images, test 5 images; 24 .png" in out
    assert "3 classes, label and name: 0 a, 1 b, 2 c" in out
    assert "left out: 1 .xml (no images)" in out
    shutil.rmtree(root / "b")
    shutil.rmtree(root / "c")
    with pytest.raises(UserError, match="a single class"):
        shards(["build", "--dry-run", *arguments(cache, root)])
    assert not cache.exists()
    assert not clean_shards_path(configured(cache, root)).exists()


def test_moved_images_are_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory or an archive under another name elsewhere: its shards are used there too, and those that were
    built under the old name stay where another run may be reading them."""
    root = write_folders(tmp_path / "data")
    file = shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    for source in (root, Path(file)):
        cache = tmp_path / f"cache-{source.name}"
        old = build_shards(configured(cache, source))
        before = tree(old)
        target = tmp_path / "elsewhere" / f"moved{source.suffix}"
        target.parent.mkdir(exist_ok=True)
        shutil.move(source, target)
        settings = configured(cache, target)
        with monkeypatch.context() as patch:
            patch.setattr(build, "_build_split", lambda *_: pytest.fail("built again"))
            patch.setattr(build, "survey", lambda *_: pytest.fail("listed again"))
            path = build_shards(settings)
            assert path != old
            assert not shards_are_outdated(settings)
            assert build_shards(settings) == path
        assert tree(path) == tree(old) == before
        assert f"the same images were built before, {old / 'train'}" in " ".join(capsys.readouterr().out.split())


def test_moved_images_that_differ_are_built(tmp_path: Path) -> None:
    """Another image among them, other settings, or shards that lack a file: nothing is taken over."""
    root = write_folders(tmp_path / "data")
    cache = tmp_path / "cache"
    build_shards(configured(cache, root))
    changed = Path(shutil.copytree(root, tmp_path / "changed"))
    replace(changed)
    moved = Path(shutil.copytree(root, tmp_path / "moved"))
    limited = ("data.train_limit=9", "data.test_limit=3")
    for source, more in ((changed, ()), (moved, limited)):
        path = build_shards(configured(cache, source, *more))
        fresh = build_shards(configured(tmp_path / f"fresh-{source.name}", source, *more))
        assert tree(path) == tree(fresh)
    next((build_shards(configured(cache, root)) / "train").glob("*.tar")).unlink()
    shutil.copytree(root, tmp_path / "again")
    assert len(ShardSet(build_shards(configured(cache, tmp_path / "again")) / "train")) == 19


def test_of_many_files_the_folders_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start does not ask for the times of a million files; what changes a folder is still noticed, in any of them."""
    monkeypatch.setattr(source_record_module, "FEW", 10)
    root = write_folders(tmp_path / "data")
    (root / "a" / "empty").mkdir()
    settings = configured(tmp_path / "c", root)
    build_shards(settings)
    with monkeypatch.context() as patch:
        patch.setattr(source_record_module, "fingerprint", lambda _: pytest.fail("looked at every file"))
        assert not shards_are_outdated(settings)
    replaced = root / "c" / "new.png"
    shutil.copy(root / "a" / "a1.png", replaced)
    replaced.rename(root / "c" / "c2.png")
    assert shards_are_outdated(settings)
    build_shards(settings)
    shutil.copy(root / "a" / "a0.png", root / "a" / "empty" / "new.png")
    assert shards_are_outdated(settings)
    shutil.rmtree(root / "a" / "empty")
    assert not shards_are_outdated(settings), "the images are those that were built"
    (root / "b" / "b2.png").unlink()
    assert shards_are_outdated(settings)


def test_a_folder_touched_is_looked_into_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of folders alone prove nothing: the files decide, and building writes the new times down."""
    monkeypatch.setattr(source_record_module, "FEW", 10)
    root = write_folders(tmp_path / "data")
    settings = configured(tmp_path / "c", root)
    path = build_shards(settings)
    os.utime(root / "b", (1, 1))
    assert not shards_are_outdated(settings)
    monkeypatch.setattr(build, "_build_split", lambda *_: pytest.fail("built again"))
    assert build_shards(settings) == path
    monkeypatch.setattr(source_record_module, "fingerprint", lambda _: pytest.fail("looked at every file"))
    assert not shards_are_outdated(settings)
