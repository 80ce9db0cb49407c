"""What is known of a point: `point.json` beside its run, written by whoever runs it, read by every sweep.

A point may run in several sweeps, or in tasks of an array, at different times; so a sweep collects these files
rather than remembering anything itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from maep.ablation.grid.points import Point
from maep.config.schema import Settings
from maep.pipeline.execution import unfinished_stages
from maep.pipeline.stage_records import StageRecord
from maep.storage.documents import Document

RECORD = "point.json"


class PointState(StrEnum):
    """What became of a point; `paused` at a rung, `interrupted` with its worker."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True)
class AttackedFiles:
    """`{path in run.cache: time in ns}` of attacked shards of training images and attacked chunks of test images."""

    training: Mapping[str, int] = field(default_factory=dict)
    test: Mapping[str, int] = field(default_factory=dict)

    def since(self, before: "AttackedFiles") -> "AttackedFiles":
        """Those that are new, or written again, compared with an earlier look."""
        return AttackedFiles(_newer(self.training, before.training), _newer(self.test, before.test))

    def __or__(self, later: "AttackedFiles") -> "AttackedFiles":
        return AttackedFiles({**self.training, **later.training}, {**self.test, **later.test})


def _newer(files: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {path: time for path, time in files.items() if before.get(path) != time}


@dataclass(frozen=True)
class PointRecord(Document):
    """reason: of a failure. seconds: over all attempts. attacked: what was attacked while it ran. failures: how often
    it has failed so far; records from before it was counted say 0.
    """

    state: PointState = PointState.WAITING
    reason: str = ""
    seconds: float = field(default=0.0, metadata={"low": 0})
    attacked: AttackedFiles = field(default_factory=AttackedFiles)
    failures: int = field(default=0, metadata={"low": 0})


def read_record(point: Point) -> PointRecord:
    """A point's record; a point that never ran is waiting. Raises UserError for one that cannot be read."""
    path = point.directory / RECORD
    return PointRecord.read(path) if path.is_file() else PointRecord()


def write_record(point: Point, record: PointRecord) -> None:
    """Commit it beside the point's run."""
    record.write(point.directory / RECORD)


def failures_of(points: Sequence[Point]) -> dict[str, int]:
    """`{identity: how often it has failed}`. Counted, since the clocks of workers and of their disks differ."""
    return {point.identity: read_record(point).failures for point in points}


def has_failed(point: Point, before: Mapping[str, int] | None = None) -> bool:
    """Whether the point's last run ended in an error. before: only one after that look at `failures_of` counts."""
    record = read_record(point)
    return record.state == PointState.FAILED and (before is None or record.failures > before[point.identity])


def is_finished(point: Point) -> bool:
    """Whether every stage of the point is finished and whole, whichever sweep or command ran it."""
    return (point.directory / "report.json").is_file() and not unfinished_stages(point.settings)


def attacked_files(settings: Settings) -> AttackedFiles:
    """Every finished piece of attack work in run.cache."""
    cache = Path(settings.run.cache)
    return AttackedFiles(
        _times(cache, "adversarial/*/*.attack.json"),
        _times(cache, "attacked/*/*.safetensors"),
    )


def _times(cache: Path, pattern: str) -> dict[str, int]:
    return {
        str(path.relative_to(cache)): path.stat().st_mtime_ns
        for path in sorted(cache.glob(pattern))
        if not path.name.endswith(".partial.safetensors") and not path.name.startswith(".")
    }


def stage_seconds(point: Point) -> dict[str, float]:
    """`{stage: seconds}` of a point's finished stages."""
    return {name: record.seconds for name, record in _stage_records(point.directory).items() if record.finished}


def recorded_seconds(point: Point) -> dict[str, float]:
    """`{stage: seconds}` of a point's stages, finished or not, over all attempts; its rungs' as `STEP/stage`."""
    seconds = {name: record.seconds for name, record in _stage_records(point.directory).items()}
    for rung in point.directory.glob("rungs/*"):
        seconds |= {f"{rung.name}/{name}": record.seconds for name, record in _stage_records(rung).items()}
    return seconds


def _stage_records(run: Path) -> dict[str, StageRecord]:
    return {path.stem: StageRecord.read(path) for path in (run / "stages").glob("*.json")}
