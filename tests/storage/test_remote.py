"""Remote shards: the same samples as local ones, few bytes, retried, and every fault named at its place."""

import gzip
import itertools
import os
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from maep.config.load import load_settings
from maep.config.training_settings import TrainSettings
from maep.data.images.build import clean_shards_path, clean_split
from maep.data.pairs import PairBatches, PairDataset, pair_loader
from maep.data.shard_manifest import CleanManifest
from maep.data.shards import ShardSet, ShardWriter, seal_shard_set, shard_name
from maep.runtime.errors import UserError
from maep.storage.manifests import FileEntry
from maep.storage.remote import MOST_FILES, Extent, Reading, Remote, Storage, files_kept_open, location, open_storage
from tests.storage.http_server import Server, serving

COUNT, EACH, SIDE = 60, 20, 40


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Path:
    """A set of three shards of about 100 kB, as `train` below a directory."""
    path = tmp_path_factory.mktemp("served") / "train"
    for number in range(COUNT // EACH):
        with ShardWriter(path / shard_name(number)) as writer:
            for index in range(number * EACH, (number + 1) * EACH):
                writer.write(index, images[index], index % 10)
    seal_shard_set(path, CleanManifest(image_size=SIDE, classes=tuple(map(str, range(10)))))
    return path


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    with serving(directory.parent) as server:
        yield server


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    """Small blocks, a small cache, and little patience."""
    return Reading(
        timeout=5, attempts=3, backoff=0.01, cache_dir=tmp_path / "blocks", cache_bytes=10**6, cache_block=8192
    )


def without_cache(reading: Reading) -> Reading:
    return Reading(**{**reading.__dict__, "cache_bytes": 0})


def opened(server: Server, reading: Reading) -> ShardSet:
    return ShardSet(Remote(server.address) / "train", reading)


# --- the same, and little of it ---


@pytest.mark.parametrize("cached", [True, False])
def test_remote_samples_are_the_local_ones(
    server: Server, reading: Reading, images: np.ndarray, directory: Path, cached: bool
) -> None:
    """Over HTTP, with and without a cache, every image and label is the local set's, in any order and together."""
    shards = opened(server, reading if cached else without_cache(reading))
    assert shards.identity == ShardSet(directory).identity
    order = np.random.default_rng(1).permutation(COUNT).tolist()
    batch, labels = shards.batch(order)
    assert np.array_equal(batch.permute(0, 2, 3, 1).numpy(), images[order])
    assert labels.tolist() == [index % 10 for index in order]
    assert np.array_equal(shards.image(7), images[7])


def test_any_file_system_of_fsspec_serves(directory: Path, reading: Reading, images: np.ndarray) -> None:
    """memory:// is read like http://, and file:// like the path that it names."""
    memory, root = fsspec.filesystem("memory"), f"/{uuid.uuid4()}"
    for path in directory.iterdir():
        memory.pipe_file(f"{root}/{path.name}", path.read_bytes())
    assert np.array_equal(ShardSet(f"memory:/{root}", reading).image(33), images[33])
    assert ShardSet(f"file://{directory}").path == directory
    assert location("https://host/a") / "train" == Remote("https://host/a/train")


def test_only_what_is_needed_is_read(server: Server, reading: Reading, directory: Path) -> None:
    """Three samples of one shard: its index, the manifest and a few blocks are sent, each once, and nothing else."""
    shards = opened(server, reading)
    for index in (21, 30, 21):
        shards.image(index)
    shards.images([21, 22])
    names = {name for name, _ in server.sent}
    assert names == {"manifest.json", "shard-00001.index.json", "shard-00001.tar"}
    sent = sum(size for name, size in server.sent if name == "shard-00001.tar")
    assert 0 < sent <= 4 * reading.cache_block < (directory / "shard-00001.tar").stat().st_size / 2
    before = len(server.sent)
    opened(server, reading).images([21, 22, 30])
    assert [name for name, _ in server.sent[before:] if name != "manifest.json"] == []
    plain = opened(server, without_cache(reading))
    before = len(server.sent)
    content = plain.image(30)
    assert next(size for name, size in server.sent[before:] if name.endswith(".tar")) < content.size + 1000


def test_the_cache_stays_within_its_bytes(server: Server, reading: Reading, images: np.ndarray) -> None:
    """A cache of a tenth of the set never holds more, whatever is read, and what it gives is right."""
    limit = 4 * reading.cache_block
    shards = opened(server, Reading(**{**reading.__dict__, "cache_bytes": limit}))
    for index in np.random.default_rng(2).integers(0, COUNT, 100).tolist():
        assert np.array_equal(shards.image(index), images[index])
        blocks = [path for path in reading.cache_dir.iterdir() if not path.name.startswith(".")]
        assert 0 < sum(path.stat().st_size for path in blocks) <= limit


# --- faults ---


def test_failing_slow_and_broken_answers_are_tried_again(server: Server, reading: Reading, images: np.ndarray) -> None:
    """Two refused requests, one that hangs, two cut in their body: asked again, and the samples are right."""
    impatient = Reading(**{**reading.__dict__, "timeout": 0.5})
    server.failing = 2
    shards = opened(server, impatient)
    server.hanging = 1
    assert np.array_equal(shards.image(3), images[3])
    server.cut = 2
    assert np.array_equal(shards.image(50), images[50])
    assert server.failing == server.hanging == server.cut == 0


@pytest.mark.parametrize("fault", ["failing", "hanging", "cut"])
def test_what_fails_for_good_is_named(server: Server, reading: Reading, fault: str) -> None:
    """After the last try one line names the shard's address, what happened and how often it was tried."""
    shards = opened(server, Reading(**{**reading.__dict__, "timeout": 0.3}))
    shards.label(45)
    setattr(server, fault, 1000)
    reason = {"failing": "503", "hanging": "no answer within 0.3 s", "cut": "ContentLength|payload"}[fault]
    with pytest.raises(UserError, match=rf"attempt 3 of 3.*({reason})") as told:
        shards.image(45)
    assert str(told.value).startswith(f"{server.address}/train/shard-00002.tar: cannot be read")
    assert "\n" not in str(told.value)


def test_what_is_not_there_is_named_at_once(server: Server, reading: Reading) -> None:
    """A set or shard that is missing is not asked for again and again."""
    with pytest.raises(UserError, match=rf"{server.address}/nowhere: not a shard set"):
        ShardSet(f"{server.address}/nowhere", reading)
    shards = opened(server, reading)
    server.directory = server.directory / "elsewhere"
    with pytest.raises(UserError, match=r"shard-00000\.index\.json: no such file"):
        shards.image(0)


def test_an_altered_byte_is_named_at_its_sample(
    server: Server, reading: Reading, images: np.ndarray, directory: Path
) -> None:
    """One bit flipped at the server: its sample is named, others are read; mended, the cache has not kept it."""
    tar = directory / "shard-00000.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(b"000000012.png") + 512 + 700] ^= 1
    server.altered["shard-00000.tar"] = bytes(content)
    shards = opened(server, reading)
    assert np.array_equal(shards.image(3), images[3])
    with pytest.raises(UserError, match=rf"{server.address}/train/shard-00000\.tar: sample 000000012 is altered"):
        shards.images([3, 12])
    server.altered.clear()
    assert np.array_equal(shards.image(12), images[12])
    index = directory / "shard-00001.index.json"
    server.altered[index.name] = index.read_bytes().replace(b'"first":20', b'"first":21')
    with pytest.raises(UserError, match=r"shard-00001\.index\.json: altered"):
        shards.image(20)


def test_a_server_without_ranges_is_named(server: Server, reading: Reading) -> None:
    """A server that sends whole files is told apart from a damaged shard."""
    server.ranges = False
    with pytest.raises(UserError, match=r"bytes came instead of 1; the server must answer requests for byte ranges"):
        opened(server, reading)


def test_a_body_without_end_is_left(server: Server, reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file whose size nobody knows as much is taken as such a file may have, of a range its bytes."""
    monkeypatch.setattr("maep.storage.remote.LIMIT", 2**20)
    storage = open_storage(location(f"{server.address}/train"), without_cache(reading))
    server.endless = 2
    with pytest.raises(UserError, match=r"manifest\.json: .* bytes came instead of 1048576"):
        storage.read_file("manifest.json")
    name = shard_name(0)
    with pytest.raises(UserError, match=r"shard-00000\.tar: .* bytes came instead of 100"):
        storage.read([Extent(name, FileEntry(200_000, "0" * 64), 0, 100)])
    storage.close()


@pytest.mark.parametrize(
    ("encoding", "told"),
    [("gzip", "came compressed"), ("deflate", "(came compressed|cannot be read)"), ("br", "cannot be read")],
)
def test_a_compressed_body_is_refused(server: Server, reading: Reading, encoding: str, told: str) -> None:
    """A few bytes could become gigabytes before anybody sees them; nothing compressed was asked for."""
    server.encoding = encoding
    server.altered["manifest.json"] = gzip.compress(bytes(2**27))
    with pytest.raises(UserError, match=rf"manifest\.json: {told}"):
        opened(server, reading)
    assert sum(size for _, size in server.sent) < 10**6


def test_unknown_and_missing_protocols_are_named(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown protocol, and one whose package is not installed, say what to do."""
    with pytest.raises(UserError, match=r"nonsense://a/b: unknown protocol nonsense"):
        ShardSet("nonsense://a/b", reading)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"s3://bucket/set: s3 needs a package that is not installed.*maep\[s3\]"):
        ShardSet("s3://bucket/set", reading)


# --- through the settings, into training ---


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_reads_remote_pairs_and_tells_of_faults(
    server: Server, tmp_path: Path, images: np.ndarray, workers: int
) -> None:
    """Loader processes read over HTTP; the error that one of them meets arrives as one line, not as a traceback."""
    words = [f"data.shards={server.address}", f"run.cache={tmp_path}", "data.read_attempts=1"]
    settings = load_settings(None, [*words, f"data.image_size={SIDE}"])
    assert str(clean_shards_path(settings)) == server.address
    clean = clean_split(settings, "train")
    train = TrainSettings(batch_size=COUNT, mask_ratio=0.5, flip=False)
    pairs = PairDataset(clean, clean, train, SIDE, 4, seed=0)

    def epoch() -> PairBatches:
        return iter(pair_loader(pairs, train, first=0, last=1, rank=0, world=1, workers=workers))

    batches = epoch()
    batch = next(batches)
    assert torch.equal(batch.clean, torch.from_numpy(images[batch.indices].transpose(0, 3, 1, 2)))
    batches.close()
    server.failing = 10**6
    for block in (tmp_path / "blocks").iterdir():
        block.unlink()
    batches = epoch()
    with pytest.raises(UserError) as told:
        next(batches)
    batches.close()
    assert "\n" not in str(told.value)
    assert str(told.value).startswith(f"{server.address}/train/shard-0000")


@pytest.mark.parametrize(
    ("granted", "kept"),
    [
        (1024, 768), (3, 1), (300, 75), (20_000, 18_000), (10**6, MOST_FILES), (resource.RLIM_INFINITY, MOST_FILES),
    ],
)  # fmt: skip
def test_sets_keep_a_share_of_the_files_that_a_process_is_granted(
    monkeypatch: pytest.MonkeyPatch, granted: int, kept: int
) -> None:
    """So that large ones leave no process without, and where nothing is limited it is still a number."""
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (2, granted))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, _limits: None)
    assert files_kept_open.__wrapped__() == kept


def test_a_limit_that_may_not_be_raised_counts_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, which names no end and refuses it."""

    def refused(_which: int, _limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refused)
    assert files_kept_open.__wrapped__() == 64


def test_a_process_takes_the_files_it_is_granted(tmp_path: Path) -> None:
    """A real one whose shell gave it 64 of 400: it reads 90 shards, and all of them stay open."""
    (tmp_path / "set").mkdir()
    for number in range(90):
        (tmp_path / "set" / f"{number}").write_bytes(b"x")
    script = (
        "import os, sys; from pathlib import Path; from maep.storage.manifests import FileEntry\n"
        "from maep.storage.remote import Extent, open_storage\n"
        "storage, before = open_storage(Path(sys.argv[1])), len(os.listdir('/proc/self/fd'))\n"
        "for name in map(str, range(90)): storage.read([Extent(name, FileEntry(1, '0' * 64), 0, 1)])\n"
        "print(len(os.listdir('/proc/self/fd')) - before)"
    )
    limits = f"ulimit -Sn 64 && ulimit -Hn 400 && exec {shlex.quote(sys.executable)} -c {shlex.quote(script)}"
    done = subprocess.run(["bash", "-c", f"{limits} {tmp_path / 'set'}"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("90\n", 0), done.stderr


# --- local files ---


def test_sets_share_what_is_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that are read in turn have half of it each; a third that comes late opens few; closed, they give it back."""
    monkeypatch.setattr("maep.storage.remote._KEPT", set())
    monkeypatch.setattr("maep.storage.remote.files_kept_open", lambda: 32)
    for number in range(40):
        (tmp_path / f"{number}").write_bytes(bytes([number]))
    before = len(os.listdir("/proc/self/fd"))
    first, second, third = (open_storage(tmp_path) for _ in range(3))

    def read(*storages: Storage) -> int:
        for number, storage in itertools.product([*range(40), *range(40)], storages):
            assert storage.read([Extent(f"{number}", FileEntry(1, ""), 0, 1)]) == [bytes([number])]
        return len(os.listdir("/proc/self/fd")) - before

    assert read(first, second) == 32
    assert read(third) == 34
    second.close()
    assert read(third) == 32
    first.close()
    third.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_read_that_comes_in_parts_is_whole(
    directory: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system gives at most 2 GiB a call, here 7 bytes: every byte comes, and fewer only where the file ends."""
    name = shard_name(0)
    content = (directory / name).read_bytes()
    pread = os.pread
    monkeypatch.setattr("os.pread", lambda descriptor, size, start: pread(descriptor, min(size, 7), start))
    assert np.array_equal(ShardSet(directory).image(5), images[5])
    storage, entry = open_storage(directory), FileEntry(len(content), "")
    extents = [Extent(name, entry, start, size) for start, size in ((0, 100), (len(content) - 9, 50), (10**9, 5))]
    assert storage.read(extents) == [content[:100], content[-9:], b""]


def test_what_is_no_file_in_a_shards_place_is_refused(directory: Path, tmp_path: Path) -> None:
    """A pipe, which would wait for a writer, a device, a socket, a directory, and nothing at all: named at once."""
    storage = open_storage(tmp_path)
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "device.tar").symlink_to("/dev/zero")
    (tmp_path / "folder.tar").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.tar"))
    for name in ("pipe", "device", "folder", "socket", "nothing"):
        with pytest.raises(UserError, match=rf"{name}\.tar: (is no regular file|cannot be read: No such)"):
            storage.read([Extent(f"{name}.tar", FileEntry(5, ""), 0, 5)])
    copy = Path(shutil.copytree(directory, tmp_path / "set"))
    (copy / shard_name(0)).unlink()
    os.mkfifo(copy / shard_name(0))
    with pytest.raises(UserError, match=rf"{shard_name(0)}"):
        ShardSet(copy).image(0)
