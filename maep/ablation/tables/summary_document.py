"""ablation.json: what a sweep measured, how, and at what cost; also committed under tests/reports/ablation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from maep.ablation.grid.halving import Halving
from maep.ablation.grid.row_selector import RowSelector
from maep.ablation.grid.sweep import OtherDefense
from maep.ablation.running.overhead import SweepTime
from maep.ablation.running.point_records import PointState
from maep.ablation.running.rungs import Stop
from maep.ablation.tables.cells import Cell
from maep.ablation.tables.details import Detail
from maep.storage.documents import Document

SUMMARY = "ablation.json"


@dataclass(frozen=True)
class AxisNames:
    """One dimension of the table: its title, and what its values are called."""

    title: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class AttackCount:
    """attacks: pieces (shards, chunks) attacked, each time counted; pieces: different ones among them.

    sets: different sets of images, a test set once for each attack and budget. Work was reused if attacks = pieces.
    """

    attacks: int = field(metadata={"low": 0})
    pieces: int = field(metadata={"low": 0})
    sets: int = field(metadata={"low": 0})


@dataclass(frozen=True)
class AttackCounts:
    """Of the training images and of the test images."""

    training: AttackCount
    test: AttackCount


@dataclass(frozen=True)
class PretrainingCount:
    """points: how many have finished their pretraining; trained: how many of them trained themselves."""

    points: int = field(metadata={"low": 0})
    trained: int = field(metadata={"low": 0})


@dataclass(frozen=True)
class PointEntry:
    """A point. state: a PointState, or in words where halving stopped it; reason: of a failure."""

    names: tuple[str, ...]
    seed: int
    identity: str
    directory: str
    state: str
    reason: str
    seconds: float
    stopped: Stop | None

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{' · '.join(self.names)}, seed {self.seed}"


@dataclass(frozen=True)
class SweepSummary(Document):
    """The file's entries, in order. readings: the row selectors by name; command: how to make it again.

    details: of sweeps that read costs or name claims; of others the file has no such entry.
    others: defenses that the table sets beside its points, as published.
    """

    VERSION_KEY: ClassVar[str] = "schema"

    name: str
    table: str
    title: str
    scale: str
    note: str
    errata: tuple[str, ...]
    command: tuple[str, ...]
    environment: Mapping[str, Any]
    axes: tuple[AxisNames, ...]
    readings: Mapping[str, RowSelector]
    values: tuple[str, ...]
    halving: Halving | None
    attacked: AttackCounts
    pretrainings: PretrainingCount
    seconds: SweepTime
    points: tuple[PointEntry, ...]
    cells: tuple[Cell, ...]
    details: tuple[Detail, ...] = ()
    others: tuple[OtherDefense, ...] = ()

    @property
    def finished(self) -> int:
        """How many points are."""
        return sum(point.state == PointState.FINISHED for point in self.points)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; measures have their difference from the paper beside them."""
        entries = super().to_json()
        if not self.details:
            del entries["details"]
        if not self.others:  # as it was written before tables had any
            del entries["others"]
        for cell, cell_entry in zip(self.cells, entries["cells"], strict=True):
            for measure, entry in zip(cell.measures, cell_entry["measures"], strict=True):
                entry["difference"] = measure.difference
        _without_unknown_images(entries)
        return entries


def _without_unknown_images(entries: Any) -> None:
    """Numbers of images that no report told are left out, as summaries had none before."""
    for value in entries.values() if isinstance(entries, dict) else entries:
        if isinstance(value, dict | list | tuple):
            _without_unknown_images(value)
    for name in ("images", "lowest_images"):
        if isinstance(entries, dict) and name in entries and entries[name] is None:
            del entries[name]


def read_summary(directory: Path) -> SweepSummary | None:
    """Of a sweep's directory; None if it has none. Raises UserError for one that cannot be read."""
    path = directory / SUMMARY
    return SweepSummary.read(path) if path.is_file() else None
