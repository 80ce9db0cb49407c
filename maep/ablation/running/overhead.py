"""What a sweep takes beside the work of its points: `run.dir/spent/WORKER.json`, a file a process.

Any number of workers run a sweep, now or later, so none of them adds to a common number.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from maep.ablation.running.point_records import recorded_seconds
from maep.ablation.spec.points import Point
from maep.storage.atomic import read_json, write_json

FOLDER = "spent"
TRAININGS = ("pretrain", "finetune")


def process_age() -> float:
    """Seconds since this process began, its imports included."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")


class Spent:
    """A context manager that writes down how long this process is at a sweep, and at which stages of its points.

    directory: of the sweep. A process that is killed has written what it had spent after its last point.
    """

    def __init__(self, directory: Path) -> None:
        self.began = time.time() - process_age()
        self.path = directory / FOLDER / f"{socket.gethostname()}-{os.getpid()}-{self.began:.0f}.json"
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
            for place, seconds in recorded_seconds(point).items():
                known, name = before.get(place, 0.0), place.rpartition("/")[2]
                more = seconds - known if seconds >= known else seconds
                self.stages[name] = self.stages.get(name, 0.0) + more
            self._write()

    def _write(self) -> None:
        write_json(self.path, {"seconds": time.time() - self.began, "stages": self.stages})


def seconds_spent(directory: Path) -> dict[str, Any]:
    """Of all workers there have been, in seconds: `sweep` in all; `stages`, the work, and its part `trainings`.

    `overhead` is what is neither: starting, checking, waiting for other workers, tables; `overhead_percent` is that
    in percent of `trainings`, None if nothing was trained.
    """
    files = [read_json(path) for path in sorted((directory / FOLDER).glob("*.json"))]
    names = dict.fromkeys(name for file in files for name in file["stages"])
    stages = {name: sum(file["stages"].get(name, 0.0) for file in files) for name in names}
    total, trainings = sum(file["seconds"] for file in files), sum(stages.get(name, 0.0) for name in TRAININGS)
    overhead = total - sum(stages.values())
    return {
        "workers": len(files), "sweep": total, "stages": stages, "trainings": trainings, "overhead": overhead,
        "overhead_percent": 100 * overhead / trainings if trainings else None,
    }  # fmt: skip
