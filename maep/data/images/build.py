"""Images to clean shards: which images, in which shards, written in parallel, resumable a shard at a time.

    <shards>/train/, <shards>/test/      sealed shard sets (maep.data.shards)
    <shards>/.building-train/            a split under way: its finished shards,
    <shards>/.plan-train.json            and a digest of what they were to hold
    <shards>.source.json                 what they were built from (maep.data.images.source_record)

A directory gets its final name when it is whole; a build that was killed goes on with the shards it lacks.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from maep.config.data_settings import DataSettings
from maep.config.schema import Settings
from maep.data.images.archives import fingerprint
from maep.data.images.decoding import crop_to
from maep.data.images.moved_source import content_settings, shards_of_moved_source, take_over
from maep.data.images.repeated import repetition_warnings
from maep.data.images.source_record import match_source, source_changed
from maep.data.images.sources import Item, Source, corrupt_reason, survey
from maep.data.shard_manifest import CleanManifest, SkippedImage
from maep.data.shards import ShardSet, ShardWriter, index_of, seal_shard_set, shard_name
from maep.runtime.console import progress_bar, say
from maep.runtime.cores import worker_count
from maep.runtime.digests import digest
from maep.runtime.errors import UserError, fail
from maep.runtime.text import listed
from maep.runtime.unwinding import die_on_signals, hold_signals, unblock_signals
from maep.storage.atomic import remove_temporaries
from maep.storage.documents import Document
from maep.storage.locks import one_at_a_time
from maep.storage.remote import Location, Reading, location, open_storage
from maep.storage.sealed import MANIFEST

SPLITS = ("train", "test")
PLAN = {split: f".plan-{split}.json" for split in SPLITS}
CHECKED_AT_ONCE = 500  # images a task: few enough that the progress bar moves and workers stay even
PARALLEL_FROM = 2_000_000  # pixels; fewer are written in a second, which starting worker processes alone would take
T = TypeVar("T")
R = TypeVar("R")


def clean_shards_path(settings: Settings) -> Location:
    """Where the clean shards of a configuration are or will be: `train/` and `test/` below it."""
    if settings.data.shards:
        return location(settings.data.shards)
    return _built_path(settings)


def clean_shards(settings: Settings) -> dict[str, ShardSet]:
    """The clean shards of the splits that there are, `train` and `test`."""
    path, reading = clean_shards_path(settings), Reading.of(settings.data)
    existing = [split for split in SPLITS if open_storage(path / split, reading).exists(MANIFEST)]
    return {split: ShardSet(path / split, reading) for split in existing}


def clean_split(settings: Settings, split: str) -> ShardSet:
    """The clean shards of one split, `train` or `test`. Raises UserError if there are none."""
    path, reading = clean_shards_path(settings) / split, Reading.of(settings.data)
    if not open_storage(path, reading).exists(MANIFEST):
        is_begun = isinstance(path, Path) and path.with_name(PLAN[split]).exists()
        if (others := clean_shards(settings)) and not is_begun:
            share = "" if settings.data.shards else f", data.test_fraction={settings.data.test_fraction:g}"
            fail(f"{path}: there are no {split} images, only for {', '.join(others)}{share}")
        fail(f"{path}: no clean {split} shards; run shards/build.py (or stage=shards) with the same settings first")
    return ShardSet(path, reading)


def _built_path(settings: Settings) -> Path:
    content = content_settings(settings.data)
    if content["root"] is not None:
        content["root"] = os.path.realpath(content["root"])
    return Path(settings.run.cache) / "shards" / f"{settings.data.name}-{digest(content)[:8]}"


def build_shards(settings: Settings) -> Location:
    """Build the clean shards of both splits, or what is missing of them; returns `clean_shards_path`.

    The same images and settings give the same bytes, whatever the number of processes and however often it
    was killed. With `data.shards` set, checks those instead of building. A split without images gets no
    directory. Where `data.root` holds other images than the shards were built from, they are set aside and built
    again; where the same images lay elsewhere before, the shards that were built of them are used. Raises UserError for
    bad input, for a corrupt image unless data.on_error=skip, for a full disk.
    """
    if settings.data.shards:
        return _check_built(settings)
    path = _built_path(settings)
    with one_at_a_time(path):
        missing = [split for split in SPLITS if not (path / split).exists()]
        moved = shards_of_moved_source(path, settings.data, missing)
        # Before anything is moved: bad input changes nothing.
        read = survey(settings.data) if set(missing) - set(moved) else None
        match_source(path, settings.data.root, SPLITS)
        take_over(path, moved)
        if not all((path / split).exists() for split in SPLITS):
            read = read or survey(settings.data)
            for line in read.lines():
                say(line)
            for split, items in read.splits.items():
                if not (path / split).exists():
                    _build_split(path, split, read.source, items, settings.data)
                (path / PLAN[split]).unlink(missing_ok=True)
            for line in repetition_warnings(clean_shards(settings)):
                say(line)
    return _check_built(settings)


def check_source(settings: Settings) -> None:
    """Raises as `build_shards` for a source that no shards could be built from; reads no image, writes nothing."""
    if settings.data.shards:
        if isinstance(location(settings.data.shards), Path):
            _check_built(settings)
        return
    path = _built_path(settings)
    missing = [split for split in SPLITS if not (path / split).exists()]
    if set(missing) - set(shards_of_moved_source(path, settings.data, missing)):
        survey(settings.data)


def class_names(settings: Settings) -> Sequence[str]:
    """Of the images, whether shards of them were built already or not. Raises UserError as `check_source`."""
    for shards in clean_shards(settings).values():
        return shards.classes
    return survey(settings.data).source.classes


def shards_are_outdated(settings: Settings) -> bool:
    """Whether `data.root` holds other images now than the shards that are there were built from."""
    return not settings.data.shards and source_changed(_built_path(settings), settings.data.root)


def describe_source(settings: Settings) -> list[str]:
    """What would be built from `data.root`, a line each; reads no image, writes nothing. Raises as `build_shards`."""
    if settings.data.shards:
        return [f"data.shards={settings.data.shards}: used as it is; nothing would be built"]
    return survey(settings.data).lines()


def _check_built(settings: Settings) -> Location:
    path = clean_shards_path(settings)
    splits = clean_shards(settings)
    if not splits:
        fail(f"data.shards={path}: holds no shard set (expected {path / 'train'} or {path / 'test'})")
    for shards in splits.values():
        size = shards.manifest.image_size
        if size != settings.data.image_size:
            fail(f"{shards.path}: its images are {size} pixels wide, data.image_size={settings.data.image_size}")
    return path


# --- one split ---


@dataclass(frozen=True)
class _Task:
    """One shard: what goes into it and how."""

    path: Path
    source: Source
    items: list[Item]
    first: int
    size: int
    resize: int
    encoding: str


def _build_split(path: Path, split: str, source: Source, items: list[Item], settings: DataSettings) -> None:
    working = path / f".building-{split}"
    limit = settings.train_limit if split == "train" else settings.test_limit
    labels = [(item.name, item.label) for item in items]
    try:
        _prepare(working, path / PLAN[split], digest([labels, content_settings(settings), _state(source)]))
        images, skipped = _choose(source, items, limit, settings)
        if not images:
            fail(f"data.root={settings.root}: all {len(skipped)} images of the {split} split are corrupt")
        for line in absent_classes(split, source.classes, items, images, limit):
            say(line)
        tasks = _plan_shards(working, source, images, settings)
        missing = [task for task in tasks if not index_of(task.path).exists()]
        _run(_write_shard, missing, [len(task.items) for task in missing], f"{split} shards", settings)
        _remove_strays(working, tasks)
        seal_shard_set(working, _manifest(split, source, skipped, settings), path / split)
    except OSError as error:
        raise UserError(f"{path / split}: cannot be written: {error.strerror or error}") from error
    say(f"{split}: {len(images)} images in {len(tasks)} shards, {path / split}")


def absent_classes(
    split: str, classes: Sequence[str], items: Sequence[Item], images: Sequence[Item], limit: int | None
) -> Iterator[str]:
    """In words, classes of which a split has no image: items are all that it could have, images those it takes.

    limit: how many it may take at most. What is absent is not learnt, or not judged.
    """
    there, taken = ({item.label for item in each} for each in (items, images))
    lost = [classes[label] for label in sorted(there - taken)]
    none = [name for label, name in enumerate(classes) if label not in there]
    if lost:
        why = "only corrupt ones were left" if limit is None or limit >= len(there) else f"data.{split}_limit={limit}"
        yield f"warning: {split}: no image of {len(lost)} of {len(classes)} classes: {listed(lost)} ({why})"
    if none:
        yield f"warning: {split}: the images have none of {len(none)} of {len(classes)} classes: {listed(none)}"


def _state(source: Source) -> str:
    return fingerprint(source.root) if source.root else ""


@dataclass(frozen=True)
class BuildPlan(Document):
    """identity: digest of what the shards of a split under way are to hold."""

    identity: str

    @classmethod
    def from_json(cls, value: object, source: str | Path) -> Self:
        """As every document; format 0 was the digest alone."""
        return cls(value) if isinstance(value, str) else super().from_json(value, source)


def _prepare(working: Path, file: Path, identity: str) -> None:
    """Keep the shards of an earlier, killed build of the same plan; remove those of any other."""
    plan = BuildPlan(identity)
    if not file.exists() or BuildPlan.read(file) != plan:
        if working.exists():
            shutil.rmtree(working)
        plan.write(file)
    working.mkdir(exist_ok=True)
    remove_temporaries(working)


def _remove_strays(working: Path, tasks: list[_Task]) -> None:
    """Remove all but the planned shards from the directory.

    The workers of a killed build may outlive it by moments, so their temporary files can have been in use before.
    """
    for path in set(working.iterdir()) - {file for task in tasks for file in (task.path, index_of(task.path))}:
        path.unlink(missing_ok=True)


def _choose(
    source: Source, items: list[Item], limit: int | None, settings: DataSettings
) -> tuple[list[Item], list[SkippedImage]]:
    """The images to store, and those skipped as corrupt; other images take the place of skipped ones."""
    if settings.on_error == "raise":
        return items[:limit], []
    limit = len(items) if limit is None else min(limit, len(items))
    good: list[Item] = []
    skipped: list[SkippedImage] = []
    remaining = items
    while len(good) < limit and remaining:
        missing = limit - len(good)
        candidates, remaining = remaining[:missing], remaining[missing:]
        parts = [candidates[at : at + CHECKED_AT_ONCE] for at in range(0, len(candidates), CHECKED_AT_ONCE)]
        results = _run(_check, [(source, part) for part in parts], [*map(len, parts)], "checking", settings)
        for item, reason in zip(candidates, (reason for part in results for reason in part), strict=True):
            if reason is None:
                good.append(item)
            else:
                skipped.append(SkippedImage(item.name, reason))
    for image in skipped:
        say(f"skipped {image.name}: {image.reason}")
    return good, skipped


def _plan_shards(working: Path, source: Source, items: list[Item], settings: DataSettings) -> list[_Task]:
    """Shards of at most `data.shard_images`, whose sizes differ by at most 1, so that no rank starves."""
    resize = settings.resize or settings.image_size
    shards = -(-len(items) // settings.shard_images)
    bounds = [len(items) * number // shards for number in range(shards + 1)]
    size, encoding = settings.image_size, settings.encoding
    return [
        _Task(working / shard_name(number), source, items[start:end], start, size, resize, encoding)
        for number, (start, end) in enumerate(pairwise(bounds))
    ]


def _manifest(split: str, source: Source, skipped: list[SkippedImage], settings: DataSettings) -> CleanManifest:
    """Nothing in it depends on where the images or the shards lie."""
    root = source.root.name if source.root else None
    return CleanManifest(
        dataset=settings.name, split=split, image_size=settings.image_size, classes=source.classes,
        skipped=tuple(skipped), settings={**content_settings(settings), "root": root},
    )  # fmt: skip


# --- the work of a process ---


def _write_shard(task: _Task) -> None:
    with ShardWriter(task.path, task.encoding) as writer:
        for index, item in enumerate(task.items, start=task.first):
            writer.write(index, _pixels(task, item), item.label)


def _pixels(task: _Task, item: Item) -> np.ndarray:
    """uint8 [size, size, 3]."""
    try:
        return crop_to(task.source.image(item), task.size, task.resize)
    except MemoryError:
        fail(f"{task.source.root}: {item.name}: corrupt image: there is no memory to resize it")


def _check(task: tuple[Source, list[Item]]) -> list[str | None]:
    source, items = task
    return [corrupt_reason(source, item) for item in items]


def _end_with_parent() -> None:
    """Runs in a worker: signals end it without a word, and when its parent is killed, it goes too."""
    die_on_signals()
    unblock_signals()
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: connection.wait([sentinel]) and os._exit(1), daemon=True).start()


def _run(
    work: Callable[[T], R], tasks: Sequence[T], images: Sequence[int], title: str, settings: DataSettings
) -> list[R]:
    """Results of `work` for every task, in order, with a progress bar counting the images of each.

    Small work is done in this process, where it ends before others would have started.
    """
    workers = min(worker_count(settings.workers), len(tasks))
    small = sum(images) * settings.image_size**2 < PARALLEL_FROM
    with progress_bar() as bar:
        row = bar.add_task(title, total=sum(images), note="")
        if workers < 2 or small:
            results = []
            for task, count in zip(tasks, images, strict=True):
                results.append(work(task))
                bar.advance(row, count)
            return results
        return _run_parallel(work, tasks, workers, lambda number: bar.advance(row, images[number]))


def _run_parallel(work: Callable[[T], R], tasks: Sequence[T], workers: int, finished: Callable[[int], None]) -> list[R]:
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        with hold_signals():  # the first task starts the processes
            futures = {pool.submit(work, task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            future.result()
            finished(futures[future])
        return [future.result() for future in futures]
    except BrokenProcessPool:
        fail("a worker process was killed (out of memory?); data.workers=0 needs least and goes on from here")
    finally:
        pool.shutdown(cancel_futures=True)
