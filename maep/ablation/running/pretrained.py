"""Pretrained purifiers that several points have in common, such as those that differ in their finetuning alone.

run.cache/pretrained/KEY.json    the point that has trained it
point/pretrained_by.json         in a point that copied it: from which point, and the seconds of the training there
"""

import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from maep.ablation.grid.points import Point
from maep.ablation.running.reuse import pretraining_key
from maep.config.pair_source import source_settings
from maep.config.schema import Settings
from maep.pipeline.stage_records import StageRecord, read_stage_record, record_path
from maep.pipeline.stages import STAGES, Launcher, needs_of
from maep.runtime.console import say
from maep.runtime.digests import digest
from maep.storage.atomic import atomic_file
from maep.storage.documents import Document
from maep.storage.sealed import problem_with

PRETRAIN = "pretrain"
PRETRAINED_BY = "pretrained_by.json"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class TrainedPoint(Document):
    """Who has trained a purifier. point: its run directory, within run.cache."""

    point: str


@dataclass(frozen=True)
class PretrainedBy(Document):
    """Where a point's purifier is copied from. point: the other's name; seconds: of the training there."""

    point: str
    seconds: float = field(metadata={"low": 0})


def by_pretraining(points: Iterable[Point]) -> dict[str, list[Point]]:
    """`{key: points}` of equal pretrained purifiers, in order: what one worker does, since one point trains for all."""
    groups: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        # The key names a claim's file; 16 hex digits, as in the points' own directories.
        groups[pretraining_key(point.settings)[:16]].append(point)
    return dict(groups)


def reusing_pretraining(launch: Launcher) -> Launcher:
    """`launch`, except that a pretraining which another point of the same cache has finished is copied from there."""

    def launch_or_copy(name: str, settings: Settings) -> None:
        if name != PRETRAIN:
            launch(name, settings)
            return
        directory, path = Path(settings.run.dir), _trained_point_path(settings)
        source = Path(settings.run.cache) / TrainedPoint.read(path).point if path.is_file() else directory
        if source != directory and _is_whole(source):
            _copy(source, settings)
        else:
            launch(name, settings)
        if not (directory / PRETRAINED_BY).is_file():
            TrainedPoint(str(directory.relative_to(settings.run.cache))).write(path)

    return launch_or_copy


def _trained_point_path(settings: Settings) -> Path:
    """Where it is written who has trained for these settings, images and pairs."""
    run, source = Path(settings.run.dir), source_settings(settings, settings.pretrain)
    names = needs_of(STAGES[PRETRAIN], settings)
    if source is settings:
        inputs = [StageRecord.read(record_path(run, name)).identity for name in names]
    else:  # made, by now, as a run of its own would have made and recorded them
        inputs = [STAGES[name].identity(source) for name in names]
    # 24 hex digits, as caches of the first version have it.
    return Path(settings.run.cache) / "pretrained" / f"{digest([pretraining_key(settings), *inputs])[:24]}.json"


def _is_whole(run: Path) -> bool:
    """Whether a point's pretraining is finished and its purifier whole."""
    record = read_stage_record(run, PRETRAIN)
    if record is None or not record.finished:
        return False
    problem = problem_with(run / "purifier")
    if problem:
        say(f"warning: a pretrained purifier is passed over: {problem}")
    return problem is None


def _copy(source: Path, settings: Settings) -> None:
    from maep.purifiers import read_purifier, save_purifier

    directory = Path(settings.run.dir)
    save_purifier(read_purifier(source / "purifier").used_as(settings), directory / "purifier")
    with atomic_file(directory / METRICS) as temporary:
        shutil.copy(source / METRICS, temporary)
    seconds = StageRecord.read(record_path(source, PRETRAIN)).seconds
    PretrainedBy(source.name, seconds).write(directory / PRETRAINED_BY)
    say(f"{PRETRAIN}: the same as that of {source}, taken from there")


def pretrained_by(point: Point) -> PretrainedBy | None:
    """From which point a point's pretrained purifier was copied; None if it trained its own."""
    path = point.directory / PRETRAINED_BY
    return PretrainedBy.read(path) if path.is_file() else None
