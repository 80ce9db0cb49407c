"""What a start finds out about a shard set without reading it, and that nothing stays hidden."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from maep.data import verification
from maep.data.shards import ShardSet, index_of, shard_name, shard_problems
from maep.data.verification import record_path
from maep.runtime.errors import UserError
from tests.shard_sets import pixels, write_set

IMAGES = pixels(13)
ALTERED = shard_name(1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A set of three shards."""
    return write_set(tmp_path / "set", IMAGES)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read through from then on."""
    names: list[str] = []
    whole = verification.sha256_file
    monkeypatch.setattr(verification, "sha256_file", lambda file: names.append(file.name) or whole(file))
    return names


def alter(file: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def alter_sample(path: Path) -> None:
    """One bit of the pixels of sample 7, in place."""
    offset = int(ShardSet(path)._locate([7])[1]["offset"][0])
    with (path / ALTERED).open("r+b") as file:
        file.seek(offset + 60)
        bit = file.read(1)[0] ^ 1
        file.seek(offset + 60)
        file.write(bytes([bit]))


def alter_secretly(path: Path) -> None:
    """The same, with the file's times as they were: a stamp that lies."""
    status = (path / ALTERED).stat()
    alter_sample(path)
    os.utime(path / ALTERED, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_only_the_first_start_reads_a_set(path: Path, hashed: list[str]) -> None:
    """Later ones, of the same set opened anew, look at stamps."""
    assert ShardSet(path).check() == []
    assert sorted(hashed) == sorted(p.name for p in path.iterdir() if p.name != "manifest.json")
    hashed.clear()
    assert ShardSet(path).check() == []
    assert hashed == []


def test_a_set_may_be_named_from_within(path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As `.`, and by a link: the record is the same."""
    monkeypatch.chdir(path)
    (path.parent / "link").symlink_to(path)
    for name in (".", "../link", str(path)):
        assert ShardSet(Path(name)).check() == []
    assert len(hashed) == 6
    assert record_path(path).is_file()


@pytest.mark.parametrize("name", [ALTERED, index_of(Path(ALTERED)).name])
def test_a_file_with_another_stamp_is_read(path: Path, hashed: list[str], name: str) -> None:
    """It alone; if it is altered, the start ends with its name, each time."""
    ShardSet(path).check()
    (path / name).touch()
    hashed.clear()
    assert ShardSet(path).check() == []
    assert hashed == [name]
    alter(path / name)
    for _ in range(2):
        assert ShardSet(path).check() == [f"{path / name}: altered (SHA-256 differs from its manifest)"]


def test_a_stamp_that_lies_hides_no_damage(path: Path) -> None:
    """The start lets it pass; reading names the sample, verify the file, and after that a start does too."""
    ShardSet(path).check()
    alter_secretly(path)
    shards = ShardSet(path)
    assert shards.check() == []
    with pytest.raises(UserError, match=r"shard-00001\.tar: sample 000000007 is altered \(its bytes differ"):
        shards.images(range(13))
    problem = [f"{path / ALTERED}: altered (SHA-256 differs from its manifest)"]
    assert shard_problems(path) == problem
    assert ShardSet(path).check() == problem


def test_a_large_set_is_not_read_at_a_start(
    path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says so, until verify has read it; and again for a copy, whose files are others."""
    monkeypatch.setattr(verification, "READ_AT_START", 10)
    assert ShardSet(path).check() == []
    assert hashed == []
    assert f"{path}: 6 of 6 files, 0.0 GB, were not verified" in " ".join(capsys.readouterr().out.split())
    assert shard_problems(path) == []
    hashed.clear()
    assert ShardSet(path).check() == []
    assert (hashed, capsys.readouterr().out) == ([], "")
    copy = shutil.copytree(path, path.with_name("copy"))
    shutil.copy(record_path(path), record_path(copy))
    assert ShardSet(copy).check() == []
    assert hashed == []
    assert "6 of 6 files, 0.0 GB, were changed since verified" in " ".join(capsys.readouterr().out.split())


def test_who_seals_a_large_set_has_verified_it(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files were hashed for the manifest: the first start need not ask for it."""
    monkeypatch.setattr(verification, "READ_AT_START", 10)
    assert ShardSet(write_set(tmp_path / "set", IMAGES)).check() == []
    assert (hashed, capsys.readouterr().out) == ([], "")


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.write_text("{"),
        lambda record: record.write_text("[]"),
        lambda record: record.write_text(record.read_text().replace('"stamps"', '"other"')),
        lambda record: record.write_text(record.read_text().replace(" ", "  ", 1)[:-20]),
        lambda record: record.write_text(record.read_text().replace('"format": 1', '"format": 9')),
    ],
)
def test_a_damaged_record_is_not_believed(path: Path, hashed: list[str], damage: Callable[[Path], object]) -> None:
    """The files are read, as if there were none."""
    ShardSet(path).check()
    damage(record_path(path))
    hashed.clear()
    assert ShardSet(path).check() == []
    assert len(hashed) == 6


def test_the_record_of_another_set_is_not_believed(path: Path, tmp_path: Path, hashed: list[str]) -> None:
    """A set in the place of one that was verified is read, though its files were given the same stamps."""
    ShardSet(path).check()
    other = write_set(tmp_path / "other", IMAGES[::-1])
    for file in other.glob("shard-*"):
        (path / file.name).write_bytes(file.read_bytes())
    shutil.copy(other / "manifest.json", path)
    hashed.clear()
    assert ShardSet(path).check() == []
    assert len(hashed) == 6


def test_where_the_record_cannot_be_written_each_start_reads(path: Path, hashed: list[str]) -> None:
    """A set that belongs to others: nothing fails, and damage is found."""
    record_path(path).mkdir()
    for _ in range(2):
        hashed.clear()
        assert ShardSet(path).check() == []
        assert len(hashed) == 6
    alter(path / ALTERED)
    assert len(ShardSet(path).check()) == 1


def replace_set(path: Path) -> None:
    shutil.rmtree(path)
    write_set(path, IMAGES[::-1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (alter_sample, "; the file was changed while the set was in use"),
        (lambda path: os.truncate(path / ALTERED, 1024), "1024 bytes, its manifest says"),
        (replace_set, "; another set was put in its place while this one was in use"),
        (lambda path: (path / ALTERED).unlink(), r"^\S*shard-00001\.tar: cannot be read: No such file or directory$"),
    ],
)
def test_a_set_that_changes_while_it_is_read_is_named(path: Path, change: Callable[[Path], object], named: str) -> None:
    """One line says which sample of which shard, and what became of it."""
    shards = ShardSet(path)
    shards.labels(range(13))
    shards.image(0)
    change(path)
    with pytest.raises(UserError, match=named) as told:
        shards.images(range(5, 10))
    assert str(told.value).startswith(f"{path / ALTERED}: ")
    assert "\n" not in str(told.value)
