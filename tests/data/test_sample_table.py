"""The table of all samples: the same from the indexes and from its file, which is made again when it does not fit."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maep.data import shards as shards_module
from maep.data.sample_table import HEADER, ROW, SampleTable
from maep.data.shard_manifest import ShardEntry, ShardIndex
from maep.data.shards import ShardSet, index_of, shard_name
from maep.runtime.errors import UserError
from maep.storage.remote import LocalStorage, Reading, Remote
from tests.shard_sets import pixels, write_set
from tests.storage.http_server import serving

IMAGES = pixels(13)
ORDER = [12, 0, 7, 7, 4, 5]


@pytest.fixture(autouse=True)
def _small_sets_have_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "PACKED_FROM", 1)


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that sets read from then on, one for each read."""
    names: list[str] = []
    read = LocalStorage.read
    monkeypatch.setattr(
        LocalStorage, "read", lambda self, extents: names.extend(e.name for e in extents) or read(self, extents)
    )
    return names


def table_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.samples")


def assert_right(shards: ShardSet) -> None:
    """Every sample is what was written."""
    assert np.array_equal(np.stack(shards.images(ORDER)), IMAGES[ORDER])
    assert shards.labels(ORDER) == [index % 3 for index in ORDER]


def test_an_index_is_read_once_and_only_where_it_is_needed(tmp_path: Path, read_files: list[str]) -> None:
    """However many shards there are: none is read again for other samples."""
    shards = ShardSet(write_set(tmp_path / "set", IMAGES, each=2))
    for index in (0, 1, 5, 0, 4, 5):
        shards.label(index)
    assert read_files == ["shard-00000.index.json", "shard-00002.index.json"]


def test_a_prepared_set_is_read_without_its_indexes(tmp_path: Path, read_files: list[str]) -> None:
    """By later sets, and by loader workers, which get the set pickled; in 20 bytes a sample."""
    path = write_set(tmp_path / "set", IMAGES)
    ShardSet(path).prepare()
    assert table_file(path).stat().st_size == HEADER + 20 * len(IMAGES)
    read_files.clear()
    shards = ShardSet(path)
    shards.prepare()
    for reader in (shards, pickle.loads(pickle.dumps(shards))):
        assert_right(reader)
    assert not [name for name in read_files if name.endswith("json")]


def test_small_sets_have_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their indexes are parsed faster than anybody waits."""
    monkeypatch.setattr(shards_module, "PACKED_FROM", 14)
    path = write_set(tmp_path / "set", IMAGES)
    ShardSet(path).prepare()
    assert not table_file(path).exists()


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: flip(file, 0),
        lambda file: flip(file, 20),
        lambda file: flip(file, HEADER - 12),
        lambda file: flip(file, HEADER + 16),  # the first label, which no checksum of a sample covers
        lambda file: flip(file, file.stat().st_size - 1),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes() + b"x"),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"x" * 10),
    ],
)
def test_a_damaged_file_is_not_believed(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """The indexes are read instead, and the file is made again."""
    path = write_set(tmp_path / "set", IMAGES)
    ShardSet(path).prepare()
    whole = table_file(path).read_bytes()
    damage(table_file(path))
    shards = ShardSet(path)
    assert_right(shards)
    shards.prepare()
    assert table_file(path).read_bytes() == whole


def test_a_file_of_another_set_is_not_believed(tmp_path: Path) -> None:
    """A set of the same size that is put in the place of another has a table of its own."""
    path, other = write_set(tmp_path / "set", IMAGES), write_set(tmp_path / "other", IMAGES[::-1])
    ShardSet(other).prepare()
    shutil.copy(table_file(other), table_file(path))
    shards = ShardSet(path)
    shards.prepare()
    assert_right(shards)


def test_where_nothing_can_be_written_each_process_reads_the_indexes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once, and every sample is right."""
    path = write_set(tmp_path / "set", IMAGES)
    table_file(path).mkdir()
    shards = ShardSet(path)
    shards.prepare()
    assert_right(shards)
    assert capsys.readouterr().out.count("cannot be written") == 1


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor replaced: it is named, and each process reads the indexes."""
    path = write_set(tmp_path / "set", IMAGES)
    os.mkfifo(table_file(path))
    shards = ShardSet(path)
    shards.prepare()
    assert_right(shards)
    assert "is no regular file" in " ".join(capsys.readouterr().out.split())


def test_an_index_of_a_set_that_was_replaced_is_named_so(tmp_path: Path) -> None:
    """While it was in use, before that index was read: its manifest is not the one that the set was opened by."""
    shards = ShardSet(write_set(tmp_path / "set", IMAGES))
    shutil.rmtree(tmp_path / "set")
    write_set(tmp_path / "set", IMAGES[::-1])
    with pytest.raises(UserError, match=r"shard-00000\.index\.json: altered .*another set was put in its place"):
        shards.prepare()


def test_a_set_of_more_samples_than_memory_lists_is_named(tmp_path: Path) -> None:
    """As its manifest says; nothing else of it is looked at."""
    path = write_set(tmp_path / "set", IMAGES)
    entries = json.loads((path / "manifest.json").read_text())
    del entries["content_sha256"]
    entries["shards"][-1]["count"] += 10**15
    entries["count"] += 10**15
    (path / "manifest.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=r"manifest\.json: count=1000000000000013: there is no memory"):
        ShardSet(path)


def test_an_index_that_is_not_whole_ends_the_preparation(tmp_path: Path) -> None:
    """It is named, and no file is left."""
    path = write_set(tmp_path / "set", IMAGES)
    flip(index_of(path / shard_name(1)), 200)
    with pytest.raises(UserError, match=r"shard-00001\.index\.json: altered"):
        ShardSet(path).prepare()
    assert not table_file(path).exists()


@pytest.mark.parametrize("cached", [True, False])
def test_a_remote_set_keeps_its_table_in_its_cache(tmp_path: Path, cached: bool) -> None:
    """The second time no index is asked for; without a cache they are all read, together, and kept in memory."""
    path = write_set(tmp_path / "served" / "set", IMAGES, each=2)
    reading = Reading(5, 3, 0.01, tmp_path / "blocks", 10**6 if cached else 0, 8192)
    with serving(path.parent) as server:
        shards = ShardSet(Remote(server.address) / "set", reading)
        shards.prepare()
        assert_right(shards)
        for file in path.glob("*.index.json"):
            file.unlink()
        for block in (tmp_path / "blocks").glob("[!.]*"):
            block.unlink()
        again = ShardSet(Remote(server.address) / "set", reading)
        if cached:
            assert_right(again)
        else:
            with pytest.raises(UserError, match=r"shard-00000\.index\.json: no such file"):
                again.label(0)


@pytest.mark.parametrize(
    ("name", "value"), [("crc32", -1), ("crc32", 2**32), ("bytes", 2**32), ("bytes", -1), ("labels", 2**31)]
)
def test_values_that_no_shard_has_are_refused(tmp_path: Path, name: str, value: int) -> None:
    """They would become others in the table's narrower columns."""
    path = write_set(tmp_path / "set", IMAGES)
    index = ShardIndex.from_json(json.loads(index_of(path / shard_name(0)).read_text()), "x")
    values = getattr(index, name).copy()
    values[2] = value
    table = SampleTable([ShardEntry(shard_name(0), 5, 0)], 5)
    with pytest.raises(UserError, match=f"x: {name}: expected whole numbers"):
        table.fill(0, replace(index, **{name: values}), "x")
    assert table.all_unknown() == [0]
    assert ROW.itemsize == 20
