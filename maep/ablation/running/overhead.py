"""What a sweep takes beside the work of its points: `run.dir/overhead/WORKER.json`, a file a process.

Any number of workers run a sweep, now or later, so none of them adds to a common number.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from maep.ablation.grid.points import Point
from maep.ablation.running.point_records import recorded_seconds
from maep.runtime.process_identity import start_ticks, this_process
from maep.storage.documents import Document

FOLDER = "overhead"
OLD_FOLDER = "spent"  # what it was called before documents had a version; counted too
TRAININGS = ("pretrain", "finetune")


@dataclass(frozen=True)
class WorkerTime(Document):
    """seconds: how long one process was at the sweep. stages: the part of it that stages of points took, by stage."""

    seconds: float
    stages: Mapping[str, float]


@dataclass(frozen=True)
class SweepTime:
    """Of all workers there have been, in seconds.

    sweep: in all. stages: the work; trainings: its part in pretraining and finetuning. overhead: what is neither, such
    as starting, checking, waiting for other workers, tables; overhead_percent: that in percent of `trainings`, None if
    nothing was trained. points: what the points took by their own records.
    """

    workers: int
    sweep: float
    stages: Mapping[str, float]
    trainings: float
    overhead: float
    overhead_percent: float | None = None
    points: float = 0.0


def process_age() -> float:
    """Seconds since this process began, its imports included."""
    uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    return uptime - (start_ticks(os.getpid()) or 0) / os.sysconf("SC_CLK_TCK")


class OverheadTimer:
    """A context manager that writes down how long this process is at a sweep, and at which stages of its points.

    directory: of the sweep. Of a process that is killed, what it took until its last point ended is on disk.
    """

    def __init__(self, directory: Path) -> None:
        # A process may be at a sweep more than once.
        self.path = directory / FOLDER / f"{this_process()}-{time.time_ns()}.json"
        self.stages: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    @contextmanager
    def on(self, point: Point) -> Iterator[None]:
        """Around the run of a point: its stages' seconds meanwhile are work, all other time is not."""
        before = recorded_seconds(point)
        try:
            yield
        finally:
            for key, seconds in recorded_seconds(point).items():
                stage, earlier = key.rpartition("/")[2], before.get(key, 0.0)
                # A stage that ran again from its start has fewer seconds than before, all of them new.
                self.stages[stage] = self.stages.get(stage, 0.0) + (
                    seconds - earlier if seconds >= earlier else seconds
                )
            self._write()

    def _write(self) -> None:
        WorkerTime(process_age(), self.stages).write(self.path)


def sweep_time(directory: Path, points: float = 0.0) -> SweepTime:
    """Added up over the workers' files. directory: of the sweep; points: seconds, as the result has them."""
    paths = [path for folder in (OLD_FOLDER, FOLDER) for path in sorted((directory / folder).glob("*.json"))]
    workers = [WorkerTime.read(path) for path in paths]
    names = dict.fromkeys(name for worker in workers for name in worker.stages)
    stages = {name: sum(worker.stages.get(name, 0.0) for worker in workers) for name in names}
    total, trainings = sum(worker.seconds for worker in workers), sum(stages.get(name, 0.0) for name in TRAININGS)
    overhead = total - sum(stages.values())
    percent = 100 * overhead / trainings if trainings else None
    return SweepTime(len(workers), total, stages, trainings, overhead, percent, points)
