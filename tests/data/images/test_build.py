"""Building clean shards: right, balanced, the same bytes however it was interrupted, and safe on bad input."""

import hashlib
import io
import random
import resource
import runpy
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.data.images import build
from maep.data.images.build import _run_parallel, build_shards, clean_shards_path, clean_split, crop_to
from maep.data.shard_manifest import CleanManifest
from maep.data.shards import ShardSet, index_of, shard_name
from maep.runtime.errors import UserError
from maep.runtime.unwinding import SIGNALS
from maep.storage.atomic import temporary_name
from maep.storage.sealed import MANIFEST

ROOT = Path(__file__).resolve().parents[3]


def write_folders(root: Path, each: int = 8, size: int = 20) -> Path:
    """Three classes of random PNGs, without splits."""
    rng = np.random.default_rng(0)
    for label in "abc":
        (root / label).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (size, size + 3, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{label}{number}.png")
    return root


def arguments(cache: Path, root: Path, *more: str) -> list[str]:
    return [
        f"run.cache={cache}", f"data.root={root}", "data.format=auto", "data.name=tiny",
        "data.image_size=16", "model.image_size=16", "data.shard_images=4", "data.workers=0", *more,
    ]  # fmt: skip


def configured(cache: Path, root: Path, *more: str) -> Settings:
    return load_settings(None, arguments(cache, root, *more))


def tree(root: Path) -> dict[str, str]:
    """SHA-256 of every file by relative name."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def command(cache: Path, root: Path, *more: str) -> list[str]:
    return [sys.executable, "shards/build.py", *arguments(cache, root, *more)]


def test_shards_hold_the_images(tmp_path: Path) -> None:
    """Both splits hold every image once, cropped and labelled; shards differ by at most one image."""
    root = write_folders(tmp_path / "data")
    path = build_shards(configured(tmp_path / "cache", root, "data.test_fraction=0.25"))
    train, test = ShardSet(path / "train"), ShardSet(path / "test")
    assert (len(train), len(test), train.classes) == (18, 6, ["a", "b", "c"])
    counts = [shard.count for shard in train.manifest.shards]
    assert max(counts) <= 4
    assert max(counts) - min(counts) <= 1
    assert train.manifest.split == "train"
    assert Counter(test.label(index) for index in range(6)) == {0: 2, 1: 2, 2: 2}
    wanted = Counter(
        (crop_to(Image.open(file), 16, 16).tobytes(), "abc".index(file.parent.name)) for file in root.rglob("*.png")
    )
    stored = [(shards.image(i).tobytes(), shards.label(i)) for shards in (train, test) for i in range(len(shards))]
    assert Counter(stored) == wanted


def test_fitting_images_are_stored_losslessly(tmp_path: Path) -> None:
    """An image of the stored size keeps its pixels; a larger one loses only its border when resize allows."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    assert np.array_equal(crop_to(image, 16, 16), np.asarray(image)[:, 4:20])
    assert np.array_equal(crop_to(image, 8, 16), np.asarray(image)[4:12, 8:16])
    assert crop_to(image, 10, 12).shape == (10, 10, 3)
    assert crop_to(image.resize((5, 3)), 8, 8).shape == (8, 8, 3)


def test_limits_keep_the_balance(tmp_path: Path) -> None:
    """Limited splits are the first images of the whole order, equally many a class."""
    root = write_folders(tmp_path / "data")
    whole = ShardSet(build_shards(configured(tmp_path / "c", root)) / "train")
    limited = build_shards(configured(tmp_path / "c", root, "data.train_limit=9", "data.test_limit=3"))
    train, test = ShardSet(limited / "train"), ShardSet(limited / "test")
    assert (len(train), len(test)) == (9, 3)
    assert Counter(train.label(index) for index in range(9)) == {0: 3, 1: 3, 2: 3}
    assert all(np.array_equal(train.image(index), whole.image(index)) for index in range(9))


def said(build: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """What a build says, on one line."""
    build()
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_classes_that_are_left_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a limit of either split, by what is corrupt, by a share that is held out; none where each class has one."""
    root = write_folders(tmp_path / "data")

    def build_with(*words: str) -> str:
        return said(lambda: build_shards(configured(tmp_path / "c", root, *words)), capsys)

    assert "warning" not in build_with("data.train_limit=3", "data.test_limit=3")
    text = build_with("data.train_limit=2", "data.test_limit=1")
    assert "warning: train: no image of 1 of 3 classes: c (data.train_limit=2)" in text
    assert "warning: test: no image of 2 of 3 classes: b, c (data.test_limit=1)" in text
    for path in (root / "b").iterdir():
        path.write_bytes(b"no image")
    text = build_with("data.on_error=skip", "data.test_fraction=0")
    assert "warning: train: no image of 1 of 3 classes: b (only corrupt ones were left)" in text
    few = write_folders(tmp_path / "few", each=1)
    text = said(lambda: build_shards(configured(tmp_path / "f", few, "data.test_fraction=0.4")), capsys)
    assert "warning: train: the images have none of 1 of 3 classes: " in text
    assert "warning: test: the images have none of 2 of 3 classes: " in text


def test_a_split_without_images_is_absent(tmp_path: Path) -> None:
    """With everything held out there is no training set, with nothing held out no test set."""
    root = write_folders(tmp_path / "data")
    for fraction, split in (("1.0", "test"), ("0.0", "train")):
        path = build_shards(configured(tmp_path / "c", root, f"data.test_fraction={fraction}"))
        assert [entry.name for entry in path.iterdir() if not entry.name.startswith(".")] == [split]
        assert len(ShardSet(path / split)) == 24
        (other,) = {"train", "test"} - {split}
        with pytest.raises(UserError, match=f"there are no {other} images, only for {split}, data.test_fraction="):
            clean_split(configured(tmp_path / "c", root, f"data.test_fraction={fraction}"), other)


def test_second_build_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed splits are not built again, and a changed setting builds elsewhere."""
    root = write_folders(tmp_path / "data")
    settings = configured(tmp_path / "c", root)
    path = build_shards(settings)
    monkeypatch.setattr(build, "_build_split", lambda *_: pytest.fail("built again"))
    assert build_shards(settings) == path == clean_shards_path(settings)
    assert clean_shards_path(configured(tmp_path / "c", root, "data.workers=3")) == path
    assert clean_shards_path(configured(tmp_path / "c", root, "data.train_limit=5")) != path
    assert clean_shards_path(configured(tmp_path / "c", tmp_path)) != path


def test_bytes_do_not_depend_on_processes_or_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process or three, here or there: the same files."""
    first, second = write_folders(tmp_path / "1" / "data"), write_folders(tmp_path / "2" / "data")
    monkeypatch.setattr(build, "PARALLEL_FROM", 0)
    alone = build_shards(configured(tmp_path / "a", first))
    together = build_shards(configured(tmp_path / "b", second, "data.workers=3"))
    assert len(tree(alone)) > 8
    assert tree(alone) == tree(together)


def test_killed_builds_end_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL at random moments, any number of times: the build goes on, and ends with the same bytes."""
    root = write_folders(tmp_path / "data", each=100, size=224)
    more = ("data.image_size=224", "data.shard_images=10")
    wanted = tree(build_shards(configured(tmp_path / "whole", root, *more)))
    rng = random.Random(0)
    path = clean_shards_path(configured(tmp_path / "killed", root, *more))
    kept = []
    for kill in range(3):
        workers = f"data.workers={2 * (kill == 1)}"
        process = subprocess.Popen(command(tmp_path / "killed", root, *more, workers), cwd=ROOT)
        wait_for_shards(path, 1 + 3 * kill, process)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept.append(len(list(path.rglob("*.index.json"))))
    assert kept == sorted(kept)
    assert 0 < kept[0] < 30
    build_shards(configured(tmp_path / "killed", root, *more))
    assert tree(path) == wanted


def test_interrupted_build_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build stopped before its end writes only the shards it lacks, and seals no writer's leftovers."""
    settings = configured(tmp_path / "c", write_folders(tmp_path / "data"))
    wanted = tree(build_shards(configured(tmp_path / "whole", tmp_path / "data")))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "seal_shard_set", interrupt)
        build_shards(settings)
    path = clean_shards_path(settings)
    working = path / ".building-train"
    index_of(working / shard_name(1)).unlink()
    written = {file.name: file.stat().st_mtime_ns for file in working.iterdir()}
    alive = temporary_name(working / shard_name(2)).name
    (working / alive).write_bytes(b"half a shard of a process that still runs")
    build_shards(settings)
    assert tree(path) == wanted
    kept = {name for name, time in written.items() if (path / "train" / name).stat().st_mtime_ns == time}
    assert set(written) - kept == {shard_name(1)}


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def wait_for_shards(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until that many shards are finished, or the build is."""
    deadline = time.monotonic() + 60
    while len(list(path.rglob("*.index.json"))) < count and process.poll() is None:
        assert time.monotonic() < deadline, "the build does not get on"
        time.sleep(0.02)


def test_workers_end_with_a_killed_build(tmp_path: Path) -> None:
    """When the building process is killed, its workers do not stay behind."""
    root = write_folders(tmp_path / "data", each=100, size=224)
    more = ("data.image_size=224", "data.shard_images=10", "data.workers=2")
    process = subprocess.Popen(command(tmp_path / "c", root, *more), cwd=ROOT, start_new_session=True)
    wait_for_shards(clean_shards_path(configured(tmp_path / "c", root, *more)), 1, process)
    assert len(members(process.pid)) > 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members(process.pid) == []


def members(session: int) -> list[int]:
    """Processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_shards_of_another_plan_are_not_kept(tmp_path: Path) -> None:
    """A build interrupted before the images changed does not mix the old shards with the new."""
    root = write_folders(tmp_path / "data")
    settings = configured(tmp_path / "c", root)
    path = build_shards(settings)
    wanted = tree(path)
    # As a kill before the last rename leaves it, and one image more since then.
    (path / "train").rename(path / ".building-train")
    (path / ".building-train" / MANIFEST).unlink()
    (path / ".plan-train.json").write_text('"of other images"')
    (path / ".building-train" / shard_name(0)).write_bytes(b"old")
    build_shards(settings)
    assert tree(path) == wanted


def test_corrupt_image_is_named_or_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """data.on_error=raise names the image and seals nothing; skip lists it and takes the next in its place."""
    root = write_folders(tmp_path / "data")
    names = ["a/a3.png", "b/b1.png"]
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:50])
    monkeypatch.setattr(build, "PARALLEL_FROM", 0)
    monkeypatch.setattr(build, "CHECKED_AT_ONCE", 5)
    for workers in ("data.workers=0", "data.workers=2"):
        strict = configured(tmp_path / "c", root, "data.test_fraction=0.0", workers)
        with pytest.raises(UserError, match=r"(a/a3|b/b1)\.png: corrupt image"):
            build_shards(strict)
        assert not list(clean_shards_path(strict).rglob(MANIFEST))
        skip = ("data.test_fraction=0.0", "data.on_error=skip", workers)
        train = ShardSet(build_shards(configured(tmp_path / workers, root, *skip)) / "train")
        assert len(train) == 22
        assert isinstance(train.manifest, CleanManifest)
        assert sorted(image.name for image in train.manifest.skipped) == names
        assert all("corrupt image: " in image.reason for image in train.manifest.skipped)
        assert str(tmp_path) not in (train.path / MANIFEST).read_text()
    limited = build_shards(configured(tmp_path / "c", root, *skip, "data.train_limit=22"))
    assert len(ShardSet(limited / "train")) == 22


def test_a_source_of_corrupt_images_only(tmp_path: Path) -> None:
    """Skipping everything is an error, not an empty set."""
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / "x.png").write_text("no image")
    with pytest.raises(UserError, match="all 2 images of the train split are corrupt"):
        build_shards(configured(tmp_path / "c", tmp_path / "data", "data.test_fraction=0.0", "data.on_error=skip"))


def test_full_disk_seals_nothing(tmp_path: Path) -> None:
    """When a shard cannot be written, no split and no shard has its final name; later the build goes on."""
    root = write_folders(tmp_path / "data")
    settings = configured(tmp_path / "c", root)
    wanted = tree(build_shards(configured(tmp_path / "whole", root)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"shard-00000\.tar: cannot be written: File too large"):
            build_shards(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    path = clean_shards_path(settings)
    assert not list(path.rglob("shard-*"))
    assert not list(path.rglob(".tmp-*"))
    assert tree(build_shards(settings)) == wanted


def test_unwritable_cache_is_refused(tmp_path: Path) -> None:
    """A cache below a file cannot be made, and the message names it."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file/shards/tiny-.*: cannot be written: Not a directory"):
        build_shards(configured(tmp_path / "file", write_folders(tmp_path / "data")))


def test_existing_shards_are_checked(tmp_path: Path) -> None:
    """data.shards is used as it is, and refused when it is missing, damaged or of another image size."""
    root = write_folders(tmp_path / "data")
    path = build_shards(configured(tmp_path / "c", root))
    given = (f"data.shards={path}", "data.root=null")
    assert build_shards(configured(tmp_path / "c", root, *given)) == path
    with pytest.raises(UserError, match=r"are 16 pixels wide, data\.image_size=20"):
        build_shards(configured(tmp_path / "c", root, *given, "data.image_size=20"))
    with pytest.raises(UserError, match=r"data\.shards=.*nowhere: holds no shard set"):
        build_shards(configured(tmp_path / "c", root, f"data.shards={tmp_path / 'nowhere'}"))
    shard = path / "test" / shard_name(0)
    shard.write_bytes(shard.read_bytes()[:-1])
    for settings in (configured(tmp_path / "c", root, *given), configured(tmp_path / "c", root)):
        with pytest.raises(UserError, match=r"test/shard-00000\.tar: \d+ bytes, its manifest says"):
            build_shards(settings)


def test_resize_below_the_stored_size_is_refused(tmp_path: Path) -> None:
    """A shorter side below the crop would need invented pixels."""
    with pytest.raises(UserError, match=r"data\.resize=12: must be at least data\.image_size=16"):
        build_shards(configured(tmp_path / "c", write_folders(tmp_path / "data"), "data.resize=12"))


def test_two_builds_at_once(tmp_path: Path) -> None:
    """Two builds of the same shards take turns and agree."""
    root = write_folders(tmp_path / "data", each=30)
    started = [
        subprocess.Popen(command(tmp_path / "c", root), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    path = clean_shards_path(configured(tmp_path / "c", root))
    assert [entry.name for entry in sorted(path.iterdir())] == [".lock", "test", "train"]
    assert ShardSet(path / "train").verify() + ShardSet(path / "test").verify() == []


def test_build_command_refuses_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """shards/build.py ends with code 2 and one line for a missing root."""
    monkeypatch.setattr(sys, "argv", ["build.py", *arguments(tmp_path / "c", tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "shards" / "build.py"), run_name="__main__")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"data.root={tmp_path / 'nowhere'}: No such file or directory" in error


def test_cifar10_and_imagenet(shared_data: Path, tmp_path: Path) -> None:
    """Real CIFAR-10 is stored pixel for pixel in the standard label order; ImageNet gives both splits."""
    limits = ("data.image_size=32", "data.train_limit=50", "data.test_limit=20")
    test = ShardSet(build_shards(configured(tmp_path / "c", shared_data / "cifar10.zip", *limits)) / "test")
    assert test.classes[3] == "cat"
    archive = zipfile.ZipFile(shared_data / "cifar10.zip")
    cats = [name for name in archive.namelist() if name.startswith("test/cat/") and name.endswith(".webp")]
    known = {np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")).tobytes() for name in cats}
    for index in range(20):
        assert (test.image(index).tobytes() in known) == (test.label(index) == 3)
    more = ("data.image_size=64", "data.test_fraction=0.5", "data.train_limit=8", "data.test_limit=8")
    path = build_shards(configured(tmp_path / "c", shared_data / "imagenet-sample.tar", *more))
    assert [len(ShardSet(path / split)) for split in ("train", "test")] == [8, 8]


def test_processes_that_build_take_signals_only_when_they_die_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """They start with them blocked: a Ctrl-C in the middle of their imports would be a traceback of each of them."""
    masks, submit = [], ProcessPoolExecutor.submit

    def recording(*words: Any) -> Any:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return submit(*words)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", recording)
    handlers = _run_parallel(signal.getsignal, SIGNALS, 2, lambda _: None)
    ignored = [signal.getsignal(signum) is signal.SIG_IGN for signum in SIGNALS]  # Ctrl-C, in the background
    assert handlers == [signal.SIG_IGN if each else signal.SIG_DFL for each in ignored]
    assert all(mask >= set(SIGNALS) for mask in masks)
    blocked = _run_parallel(partial(signal.pthread_sigmask, signal.SIG_BLOCK), [(), ()], 2, lambda _: None)
    assert blocked == [set(), set()]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS)
