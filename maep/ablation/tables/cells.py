"""The cells of a table: what the points measured, over seeds, beside the paper's numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from statistics import fmean, stdev
from typing import Any

from maep.ablation.grid.points import Point, is_judged
from maep.ablation.grid.row_selector import row_of
from maep.ablation.grid.sweep import Sweep
from maep.ablation.running.point_records import PointState, stage_seconds
from maep.ablation.running.pretrained import pretrained_by
from maep.ablation.running.rungs import PointStatus, Stop, halving_state, status_of
from maep.evaluation.reporting.report_row import ReportRow
from maep.runtime.errors import fail, nearest

INTERVALS = {"clean_accuracy": "clean_ci95", "robust_accuracy": "robust_ci95"}
MINUTES = {"pretrain_minutes": "pretrain", "finetune_minutes": "finetune"}
NUMBERS = [item.name for item in fields(ReportRow) if item.type in (int, float, int | None, float | None)]


@dataclass(frozen=True)
class Measure:
    """One number of a cell: the mean over `seeds` runs, 0 if none has been run.

    interval: Wilson's 95 % of the one run, where it is an accuracy; deviation: the standard deviation over several.
    paper: the published number. images: how many the accuracies are of, in the run that has the fewest; None where no
    report says.
    """

    name: str
    seeds: int = 0
    mean: float | None = None
    deviation: float | None = None
    interval: tuple[float, float] | None = None
    paper: float | None = None
    images: int | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper


@dataclass(frozen=True)
class Cell:
    """names: along the axes; reading: the name of its row selector; measures: one a value.

    state: of its points, one of PointState or where halving stopped it; of several that differ each with its count.
    """

    names: tuple[str, ...]
    reading: str
    state: str
    measures: tuple[Measure, ...]


def check_values(sweep: Sweep) -> None:
    """Raise UserError for a value or a cost that is no number of a report's row, whatever has been run."""
    for key, names, known in (("values", sweep.values, [*NUMBERS, *MINUTES]), ("costs", sweep.costs, NUMBERS)):
        for name in names:
            if name not in known:
                fail(f"{sweep.file}: {key}: {name}: no number of a report{nearest(str(name), known)}; choose among "
                     f"{', '.join(known)}")  # fmt: skip


def read_cells(sweep: Sweep, points: Sequence[Point]) -> list[Cell]:
    """Every cell of the sweep's table, in order; of points that have not run it has no numbers, nor of those whose
    reports lack one, such as the worst of the draws of a defense that draws nothing, nor where a point is not judged
    so, as one that is not finetuned.

    Raises UserError, naming point and reading, when a finished point's report lacks a row that its settings promise.
    """
    check_values(sweep)
    cells, stopped = [], halving_state(sweep, points).stopped
    for names in product(*(axis.names for axis in sweep.axes)):
        cells += _cells_of(sweep, names, [point for point in points if point.names == names], stopped)
    return cells


def _cells_of(sweep: Sweep, names: tuple[str, ...], seeds: list[Point], stopped: Mapping[str, Stop]) -> list[Cell]:
    """A cell for each row selector. seeds: the points of these names."""
    states = [status_of(point, stopped) for point in seeds]
    finished = [point for point, status in zip(seeds, states, strict=True) if status.state == PointState.FINISHED]
    cells = []
    for reading in sweep.row_selectors:
        judged = [point for point in finished if is_judged(sweep.row_selectors[reading], point.settings)]
        rows = [_row(sweep, point, reading) for point in judged]
        paper = sweep.paper.get((*names, reading), (None,) * len(sweep.values))
        measures = (_measure(value, rows, number) for value, number in zip(sweep.values, paper, strict=True))
        cells.append(Cell(names, reading, _in_words(states), tuple(measures)))
    return cells


def _in_words(states: Sequence[PointStatus]) -> str:
    counts = Counter(map(str, states))
    return str(states[0]) if len(counts) == 1 else ", ".join(f"{count} {text}" for text, count in counts.items())


def _row(sweep: Sweep, point: Point, reading: str) -> Mapping[str, Any]:
    """The row of a point's report that a row selector means, with the minutes of its trainings."""
    selector = sweep.row_selectors[reading]
    row = row_of(point.directory / "report.json", selector)
    if row is None:
        entries = ", ".join(f"{key}={value}" for key, value in asdict(selector).items())
        fail(f"{sweep.file}: {point.label}: its report has no result with {entries}; evaluate it or change the reading")
    return {**row, **_training_minutes(point)}


def _training_minutes(point: Point) -> dict[str, float]:
    """Of a pretrained purifier that was copied, those of the training it is from."""
    copied = pretrained_by(point)
    seconds = stage_seconds(point) | ({"pretrain": copied.seconds} if copied else {})
    return {name: seconds[stage] / 60 for name, stage in MINUTES.items() if stage in seconds}


def _measure(name: str, rows: Sequence[Mapping[str, Any]], paper: float | None) -> Measure:
    rows = [row for row in rows if row.get(name) is not None]
    if not rows:
        return Measure(name, paper=paper)
    numbers = [float(row[name]) for row in rows]
    deviation = stdev(numbers) if len(numbers) > 1 else None
    low_high = rows[0].get(INTERVALS.get(name, ""))
    interval = (low_high[0], low_high[1]) if low_high and len(rows) == 1 else None
    images = min((int(row["n"]) for row in rows if "n" in row), default=None)
    return Measure(name, len(numbers), fmean(numbers), deviation, interval, paper, images)
