"""What `maep bench` writes: run.dir/bench.json, rates of a machine beside its own limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from maep.storage.documents import Document

BENCH = "bench.json"
LOADER, CHECKPOINT_SAVE = "loader", "checkpoint save"  # names of rows that other code reads


@dataclass(frozen=True)
class BenchRow:
    """One figure. rate: in `unit`. limit: what the machine reached in the same run, in words. ratio: share of it."""

    name: str
    rate: float
    unit: str
    limit: str
    ratio: float


@dataclass(frozen=True)
class BenchReport(Document):
    """All figures of one run. batch: images a training step. workers: loader processes (2 where a report lacks it).

    seed: of shards, weights and order. seconds: that all of it took; 0 where a report lacks it.
    """

    FORMAT: ClassVar[int] = 1
    VERSION_KEY: ClassVar[str] = "schema"

    environment: Mapping[str, object]
    batch: int
    rows: tuple[BenchRow, ...]
    workers: int = field(default=2, metadata={"low": 0})
    seed: int = field(default=0, metadata={"low": 0})
    seconds: float = field(default=0.0, metadata={"low": 0})

    def rate(self, name: str) -> float | None:
        """The rate of the row of this name; None without one."""
        return next((row.rate for row in self.rows if row.name == name), None)
