"""The shard format: deterministic, readable by webdataset and by position, and every damage is named."""

import json
import os
import pickle
import resource
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from maep.data.image_encoding import SUFFIXES
from maep.data.shard_manifest import ENCODINGS, CleanManifest
from maep.data.shards import (
    ShardSet,
    ShardWriter,
    find_shard_sets,
    index_of,
    seal_shard_set,
    shard_name,
    shard_problems,
    to_float,
    to_uint8,
)
from maep.runtime.errors import UserError
from maep.storage import remote as storage_module
from tests.shard_sets import pixels, write_set

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_random_access_is_lossless(tmp_path: Path, encoding: str) -> None:
    """Every image and label comes back exactly, by position, also from a pickled set."""
    images = pixels(13)
    shards = ShardSet(write_set(tmp_path / "set", images, encoding))
    assert (len(shards), shards.classes, shards.manifest.encoding) == (13, ["a", "b", "c"], encoding)
    for reader in (shards, pickle.loads(pickle.dumps(shards))):
        for index in (12, 0, 7, 4, 5):
            assert np.array_equal(reader.image(index), images[index])
            assert reader.label(index) == index % 3
    assert [tuple(part.shape[:2]) for part in shards.batch([])] == [(0, 3), (0,)]
    batch, labels = shards.batch([11, 2])
    assert (batch.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert np.array_equal(batch.numpy(), images[[11, 2]].transpose(0, 3, 1, 2))
    assert labels.tolist() == [2, 2]
    for index in (-1, 13):
        with pytest.raises(IndexError):
            shards.image(index)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_webdataset_reads_the_shards(tmp_path: Path, encoding: str) -> None:
    """Plain webdataset.WebDataset streams the same samples under the same keys."""
    images = pixels(13)
    write_set(tmp_path, images, encoding)
    urls = sorted(str(path) for path in tmp_path.glob("*.tar"))
    member = SUFFIXES[encoding]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("__key__", member, "cls")
    read = list(samples)
    assert [key for key, _, _ in read] == [f"{index:09d}" for index in range(13)]
    for index, (_, image, label) in enumerate(read):
        assert np.array_equal(image, images[index])
        assert label == index % 3


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    """Two writings agree byte for byte; another pixel or label is another identity, another encoding is not."""
    images = pixels(7)
    first, second = (write_set(tmp_path / name, images) for name in ("first", "second"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    identity = ShardSet(first).identity
    for other in ("webp", "raw"):
        assert ShardSet(write_set(tmp_path / other, images, other)).identity == identity
    images[3, 0, 0, 0] ^= 1
    assert ShardSet(write_set(tmp_path / "other", images)).identity != identity


def test_shards_of_one_set_may_differ_in_encoding(tmp_path: Path) -> None:
    """An attack that goes on after the clean set was encoded anew leaves both in its set; each is read as it is."""
    images = pixels(15)
    for number, encoding in enumerate(ENCODINGS):
        with ShardWriter(tmp_path / shard_name(number), encoding) as writer:
            for index in range(5 * number, 5 * number + 5):
                writer.write(index, images[index], 0)
    seal_shard_set(tmp_path, CleanManifest(classes=("a",)))
    assert np.array_equal(np.stack(ShardSet(tmp_path).images(range(15))), images)


def test_open_shards_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many shards there are, a reader holds few files, and closes them in the end."""
    monkeypatch.setattr(storage_module, "files_kept_open", lambda: 3)
    images = pixels(40, size=2)
    shards = ShardSet(write_set(tmp_path, images, each=2))
    before = len(os.listdir("/proc/self/fd"))
    for index in np.random.default_rng(1).permutation(40):
        assert np.array_equal(shards.image(int(index)), images[index])
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    del shards
    assert len(os.listdir("/proc/self/fd")) == before


def test_writer_refuses_what_is_no_sample(tmp_path: Path) -> None:
    """A wrong type, shape or index is an error, and leaves no shard behind."""
    image = pixels(1)[0]
    for index, bad in ((0, image.astype(np.float32)), (0, image[..., 0]), (5, image)):
        with pytest.raises(ValueError, match="expected"), ShardWriter(tmp_path / shard_name(0)) as writer:
            writer.write(2, image, 0)
            writer.write(index if index else 3, bad, 0)
        assert list(tmp_path.iterdir()) == []


def test_sealing_refuses_a_gap(tmp_path: Path) -> None:
    """A set with a shard missing in the middle is not sealed."""
    write_set(tmp_path, pixels(15))
    (tmp_path / "manifest.json").unlink()
    (tmp_path / shard_name(1)).unlink()
    with pytest.raises(ValueError, match="expected shard-00001"):
        seal_shard_set(tmp_path, CleanManifest())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", [shard_name(1), index_of(Path(shard_name(1))).name])
@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
def test_every_damage_is_named(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    """A truncated, altered or missing shard or index is named by verify; and by reading, unless a bit flipped."""
    path = write_set(tmp_path / "set", pixels(13))
    whole = ShardSet(path)
    assert whole.verify() == []
    damage(path / name)
    problems = shard_problems(path)
    assert len(problems) == 1
    assert problems[0].startswith(f"{path / name}: ")
    if damage is not alter:
        with pytest.raises(UserError, match=name):
            ShardSet(path)
    if name.endswith("json"):
        with pytest.raises(UserError, match=name):
            whole.image(7)


def test_altered_sample_is_named(tmp_path: Path) -> None:
    """One bit of a sample flipped in a shard of the right size: the sample is named when it is read."""
    path = write_set(tmp_path / "set", pixels(5))
    offset = json.loads(index_of(path / shard_name(0)).read_text())["offsets"][3]
    with (path / shard_name(0)).open("r+b") as file:
        file.seek(offset + 60)
        bit = file.read(1)[0] ^ 1
        file.seek(offset + 60)
        file.write(bytes([bit]))
    shards = ShardSet(path)
    shards.image(2)
    with pytest.raises(UserError, match=r"shard-00000\.tar: sample 000000003 is altered"):
        shards.image(3)


def test_what_is_no_shard_set_is_refused(tmp_path: Path) -> None:
    """A directory without manifest, or with another artefact's, is refused by name."""
    with pytest.raises(UserError, match="not a shard set"):
        ShardSet(tmp_path)
    (tmp_path / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(UserError, match="lacks count, shards"):
        ShardSet(tmp_path)
    with pytest.raises(UserError, match="no shard set here or below"):
        find_shard_sets(tmp_path / "nowhere")


def test_verify_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """shards/verify.py finds the sets below a path and ends with 2 naming each damaged file, else with 0."""
    monkeypatch.setattr(sys, "argv", ["verify.py", str(tmp_path)])
    for split in ("test", "train"):
        write_set(tmp_path / split, pixels(7))
    with pytest.raises(SystemExit) as whole:
        runpy.run_path(str(ROOT / "shards" / "verify.py"), run_name="__main__")
    output = capsys.readouterr()
    assert (whole.value.code, output.err) == (0, "")
    assert output.out.count(": whole, 7 images in 2 shards") == 2
    truncate(tmp_path / "train" / shard_name(1))
    alter(tmp_path / "train" / shard_name(0))
    with pytest.raises(SystemExit) as damaged:
        runpy.run_path(str(ROOT / "shards" / "verify.py"), run_name="__main__")
    assert damaged.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [str(tmp_path / "train" / shard_name(n)) for n in (1, 0)]


@pytest.mark.parametrize("room", [3_000, 12_000, 40_000])
def test_full_disk_leaves_nothing_partial(tmp_path: Path, room: int) -> None:
    """When no more bytes can be written, the error is the user's to mend and no shard has its final name."""
    images = pixels(200, size=16)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(UserError, match=r"shard-00000\.tar: cannot be written: File too large"):
            write_set(tmp_path, images, each=200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@hypothesis_settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-0.5, 1.5), min_size=1))
def test_levels(values: list[float]) -> None:
    """to_uint8 takes the nearest level and clips; every level survives to_float and back."""
    stored = to_uint8(torch.tensor(values, dtype=torch.float64))
    wanted = np.clip(np.round(np.clip(values, 0, 1) * 255.0), 0, 255)
    assert np.abs(stored.numpy() - wanted).max() <= 0
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_float(levels).dtype == torch.float32
    assert float(to_float(levels).max()) == 1.0
