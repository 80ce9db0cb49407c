"""What `maep bench` writes: run.dir/bench.json, rates of a machine beside its own limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar

from maep.runtime.console import say
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

    def line(self) -> str:
        """As it is said when it has been measured."""
        return f"{self.name}: {self.rate:.4g} {self.unit} ({self.limit}; {self.ratio:.3g})"


class Spoken(Protocol):
    """A row that can be said on a line."""

    def line(self) -> str:
        """The line."""


R = TypeVar("R", bound=Spoken)


class SpokenRows(list[R]):
    """Rows, each said as it is added: a bench takes minutes, and of one that is stopped its figures are known."""

    def append(self, row: R) -> None:
        """Add a row, and say it."""
        super().append(row)
        say(row.line())


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
