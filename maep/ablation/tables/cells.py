"""The cells of a table: what the points measured, over seeds, beside the paper's numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev
from typing import Any

from maep.ablation.running.point_records import stage_seconds
from maep.ablation.running.pretrained import pretrained_by
from maep.ablation.running.row_selector import row_of
from maep.ablation.running.rungs import standing, state_of
from maep.ablation.spec.points import Point
from maep.ablation.spec.sweep import Sweep
from maep.runtime.errors import fail

INTERVALS = {"clean_accuracy": "clean_ci95", "robust_accuracy": "robust_ci95"}
MINUTES = {"pretrain_minutes": "pretrain", "finetune_minutes": "finetune"}


@dataclass(frozen=True)
class Measure:
    """One number of a cell: the mean over `seeds` runs, 0 if none has been run.

    interval: Wilson's 95 % of the one run, where it is an accuracy; deviation: the standard deviation over several.
    paper: the published number.
    """

    name: str
    seeds: int = 0
    mean: float | None = None
    deviation: float | None = None
    interval: tuple[float, float] | None = None
    paper: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper


@dataclass(frozen=True)
class Cell:
    """names: along the axes; reading: its name; state of its points: one word, or several with counts."""

    names: tuple[str, ...]
    reading: str
    state: str
    measures: tuple[Measure, ...]


def read_cells(sweep: Sweep, points: Sequence[Point]) -> list[Cell]:
    """Every cell of the sweep's table, in order; those not run are there, empty.

    Raises UserError, naming point and reading, when a finished point's report lacks what the table reads.
    """
    cells, stopped = [], standing(sweep, points).stopped
    for names in product(*(axis.names for axis in sweep.axes)):
        own = [point for point in points if point.names == names]
        states = [state_of(point, stopped) for point in own]
        finished = [point for point, state in zip(own, states, strict=True) if state == "finished"]
        for reading in sweep.readings:
            rows = [_row(sweep, point, reading) for point in finished]
            paper = sweep.paper.get((*names, reading), (None,) * len(sweep.values))
            measures = (_measure(value, rows, n) for value, n in zip(sweep.values, paper, strict=True))
            cells.append(Cell(names, reading, _told(states), tuple(measures)))
    return cells


def _told(states: list[str]) -> str:
    kinds = dict.fromkeys(states)
    return states[0] if len(kinds) == 1 else ", ".join(f"{states.count(kind)} {kind}" for kind in kinds)


def _row(sweep: Sweep, point: Point, reading: str) -> dict[str, Any]:
    """The row of a point's report that a reading names, with the minutes of its trainings."""
    wanted = sweep.readings[reading]
    found = row_of(point.directory / "report.json", wanted)
    if found is None:
        told = ", ".join(f"{key}={value}" for key, value in wanted.items())
        fail(f"{sweep.file}: {point.label}: its report has no result with {told}; evaluate it or change the reading")
    taken = pretrained_by(point)
    seconds = stage_seconds(point) | ({"pretrain": taken["seconds"]} if taken else {})
    minutes = {name: seconds[stage] / 60 for name, stage in MINUTES.items() if stage in seconds}
    row = {**found, **minutes}
    for value in sweep.values:
        if value not in row:
            fail(f"{sweep.file}: values: {value}: not in a report; choose among {', '.join(_numbers(row))}")
    return row


def _numbers(row: dict[str, Any]) -> list[str]:
    return [key for key, value in row.items() if isinstance(value, int | float)]


def _measure(name: str, rows: Sequence[dict[str, Any]], paper: float | None) -> Measure:
    if not rows:
        return Measure(name, paper=paper)
    numbers = [float(row[name]) for row in rows]
    deviation = stdev(numbers) if len(numbers) > 1 else None
    low_high = rows[0].get(INTERVALS.get(name, ""))
    interval = (low_high[0], low_high[1]) if low_high and len(rows) == 1 else None
    return Measure(name, len(numbers), fmean(numbers), deviation, interval, paper)
