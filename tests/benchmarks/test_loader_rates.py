"""`maep bench-loader`, whole, on sets of a few shards; and sets that share one tar are sets like any other."""

from pathlib import Path

import numpy as np
import pytest

from maep.__main__ import run
from maep.benchmarks.bench_report import BenchReport
from maep.benchmarks.linked_sets import photographs, write_linked_set
from maep.benchmarks.loader_rates import LOADER_BENCH, LoaderBench, numbers
from maep.data.shard_manifest import ENCODINGS
from maep.data.shards import ShardSet
from maep.runtime.errors import UserError


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_linked_set_is_whole_and_takes_the_room_of_one_shard(tmp_path: Path, encoding: str) -> None:
    """Every shard has the same images under indices of its own."""
    images = photographs(6, 16, 0)
    shards = ShardSet(write_linked_set(tmp_path / "set", 3, images, encoding))
    assert shards.verify() == []
    assert np.array_equal(np.stack(shards.images(range(18))), np.concatenate([images] * 3))
    assert shards.labels(range(18)) == [0, 1, 2, 3, 4, 5] * 3
    assert len({path.stat().st_ino for path in (tmp_path / "set").glob("*.tar")}) == 1


def test_every_size_stands_beside_the_smallest_and_that_beside_webdataset(tmp_path: Path) -> None:
    """Rates of both encodings, each with its ratio; raw pixels are read faster than PNG."""
    bench = LoaderBench(0, [1, 2], 0.5, tmp_path)
    bench.run()
    rows = {row.name: row for row in bench.rows}
    assert list(rows) == [
        "opening, 1 shards", "order of an epoch, 1 shards", "opening, 2 shards", "order of an epoch, 2 shards",
        "pair loader, 1 shards, png", "pair loader, 2 shards, png", "pair loader, 1 shards, raw",
        "pair loader, 2 shards, raw", "shard build",
    ]  # fmt: skip
    assert rows["pair loader, 1 shards, raw"].rate > rows["pair loader, 1 shards, png"].rate
    assert rows["pair loader, 1 shards, png"].limit.startswith("webdataset")
    assert rows["pair loader, 2 shards, png"].limit.startswith("1 shards")
    assert rows["shard build"].limit.startswith("webdataset.ShardWriter with Pillow")


@pytest.mark.slow
def test_the_command_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training is started from a set and timed to its first step; the scratch directory is gone."""
    monkeypatch.chdir(tmp_path)
    assert run(["bench-loader", "run.dir=run", "--shards", "1", "--starts", "1", "--seconds", "0.05"]) == 0
    report = BenchReport.read(tmp_path / "run" / LOADER_BENCH)
    start, *commands = report.rows[-3:]
    assert [row.name for row in commands] == ["CPU of maep --help", "CPU of a finished run"]
    assert all(0.01 < row.rate < 60 for row in commands)
    assert (start.name, start.unit, start.ratio) == ("first step after start, 1 shards", "CPU s", 1.0)
    assert 0.5 < start.rate < 60
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_sizes_are_numbers() -> None:
    """In growing order, each once."""
    assert numbers("--shards", "50,10,50") == [10, 50]
    for text in ("", "0", "a", "1,,2", "-1"):
        with pytest.raises(UserError, match="expected numbers above 0"):
            numbers("--shards", text)
