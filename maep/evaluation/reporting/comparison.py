"""Several reports beside each other: a column is one threat model, attack, budget and image set only."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.stats import binomtest

from maep.attacks.catalog import title_of
from maep.evaluation.reporting.figures import COLOURS, INK, style_axes
from maep.evaluation.reporting.report_document import REPORT, Report
from maep.evaluation.reporting.report_row import Interval, ReportRow
from maep.evaluation.scoring.chunk_record import read_folder
from maep.evaluation.scoring.tasks import eps_text
from maep.runtime.errors import fail
from maep.storage.documents import Document

# Points by which a report and its records may differ: accuracies are rounded to four digits.
ROUNDING = 0.01


@dataclass(frozen=True)
class Column:
    """What rows must share to be compared. image_set: as in the report's rows; n: images."""

    dataset: str
    image_set: str
    threat_model: str
    attack: str
    norm: str
    eps: float
    n: int

    @classmethod
    def of(cls, row: ReportRow) -> "Column":
        """The column that a row of a report stands in."""
        return cls(*(getattr(row, item.name) for item in fields(Column)))

    @property
    def heading(self) -> str:
        """Its head, in three lines."""
        images = f"{self.dataset} {self.image_set[:6]}, n = {self.n}"
        return f"{self.threat_model}\n{title_of(self.attack)} {self.norm} {eps_text(self.eps)}\n{images}"


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two defenses: images that only one of them got right, and the two-sided p-value."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class ComparedRow:
    """A defense in a column. Accuracies and intervals in percent; mcnemar: against the column's first row."""

    run: str
    classifier: str
    purifier: str
    clean_accuracy: float
    clean_ci95: Interval
    robust_accuracy: float
    robust_ci95: Interval
    average_accuracy: float
    mcnemar: McNemar | None


@dataclass(frozen=True)
class ComparedColumn(Column):
    """A column and its rows."""

    rows: tuple[ComparedRow, ...]


@dataclass(frozen=True)
class Comparison(Document):
    """compare.json."""

    VERSION_KEY: ClassVar[str] = "schema"

    columns: tuple[ComparedColumn, ...]


@dataclass(frozen=True)
class ReportedDefense:
    """One purifier before one classifier in one run. rows: its results by column."""

    run: Path
    classifier: str
    purifier: str
    rows: dict[Column, ReportRow]

    @property
    def name(self) -> str:
        """As in tables: run, classifier, purifier."""
        return f"{self.run.name}: {self.classifier}, {self.purifier}"

    def correct(self, column: Column) -> dict[int, bool]:
        """By sample index, whether the attacked image was classified rightly, from the records of the run.

        Raises UserError if there are no records, or others than the report was made of.
        """
        row = self.rows[column]
        folder = self.run / "evaluation" / row.records
        correct = {
            index: right
            for record in read_folder(folder)
            for index, right in zip(record.ids, record.correct("defended_adversarial"), strict=True)
        }
        if len(correct) != row.n or abs(100 * sum(correct.values()) / len(correct) - row.robust_accuracy) > ROUNDING:
            fail(f"{folder}: its records are not those of {self.run / REPORT}; run stage=report again")
        return correct


def read_defenses(run: Path) -> list[ReportedDefense]:
    """What a run's report.json holds. Raises UserError if there is none, or one of another version."""
    rows = Report.read(run / REPORT).results
    names = dict.fromkeys((row.classifier, row.purifier) for row in rows)
    return [
        ReportedDefense(run, *name, {Column.of(row): row for row in rows if (row.classifier, row.purifier) == name})
        for name in names
    ]


def shared_columns(defenses: Sequence[ReportedDefense]) -> list[Column]:
    """The columns that at least two runs have, in order. Raises UserError, saying what differs, if there is none."""
    columns = dict.fromkeys(column for defense in defenses for column in defense.rows)
    shared = [column for column in columns if len({each.run for each in defenses if column in each.rows}) > 1]
    if not shared:
        fail(f"nothing to compare in one column: {_differences(defenses)}")
    return shared


def _differences(defenses: Sequence[ReportedDefense]) -> str:
    """What the runs do not share, such as `eps 8/255 in a, 4/255 in b`."""
    differences = []
    for item in fields(Column):
        values = {each.run: {getattr(column, item.name) for column in each.rows} for each in defenses}
        if any(not (first & second) for first, second in pairwise(values.values())):
            texts = [f"{_values_text(item.name, sorted(of_run))} in {run}" for run, of_run in values.items()]
            differences.append(f"{item.name.replace('_', ' ')}: " + "; ".join(texts))
    return " · ".join(differences) or "no threat model, attack, eps and image set is the same in two of the runs"


def _values_text(key: str, values: Sequence[float | str]) -> str:
    return ", ".join(eps_text(float(value)) if key == "eps" else str(value) for value in values)


def mcnemar(first: dict[int, bool], second: dict[int, bool]) -> McNemar:
    """McNemar's exact paired test of two defenses on the same images.

    first, second: by sample index, whether each was right. The p-value is that of so uneven a split if both were
    equally good. Raises ValueError for different images.
    """
    if first.keys() != second.keys():
        raise ValueError("not the same images")
    only_first = sum(first[index] and not second[index] for index in first)
    only_second = sum(second[index] and not first[index] for index in first)
    p = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    return McNemar(only_first, only_second, float(p))


def compare(defenses: Sequence[ReportedDefense], columns: Sequence[Column]) -> Comparison:
    """For each column its rows, each tested against the column's first one."""
    return Comparison(tuple(_compared(defenses, column) for column in columns))


def _compared(defenses: Sequence[ReportedDefense], column: Column) -> ComparedColumn:
    present = [defense for defense in defenses if column in defense.rows]
    correct = [defense.correct(column) for defense in present]
    tests = [None, *(mcnemar(correct[0], other) for other in correct[1:])]
    rows = (_compared_row(defense, column, test) for defense, test in zip(present, tests, strict=True))
    return ComparedColumn(**vars(column), rows=tuple(rows))


def _compared_row(defense: ReportedDefense, column: Column, test: McNemar | None) -> ComparedRow:
    row = defense.rows[column]
    return ComparedRow(
        str(defense.run), defense.classifier, defense.purifier, row.clean_accuracy, row.clean_ci95,
        row.robust_accuracy, row.robust_ci95, row.average_accuracy, test,
    )  # fmt: skip


def comparison_table(defenses: Sequence[ReportedDefense], comparison: Comparison) -> Table:
    """Robust accuracies in percent with interval; p of McNemar's test against the first row of the column."""
    table = Table(title="robust accuracy in % [95 % interval], p against the column's first row", box=SIMPLE_HEAD,
                  title_justify="left", padding=(0, 1, 0, 0))  # fmt: skip
    table.add_column("run: classifier, purifier", vertical="bottom")
    for column in comparison.columns:
        table.add_column(column.heading, justify="right")
    for defense in defenses:
        table.add_row(defense.name, *(_cell(_row_of(defense, column)) for column in comparison.columns))
    return table


def _row_of(defense: ReportedDefense, column: ComparedColumn) -> ComparedRow | None:
    """The row of a defense in a column, if it has one."""
    name = (str(defense.run), defense.classifier, defense.purifier)
    return next((row for row in column.rows if (row.run, row.classifier, row.purifier) == name), None)


def _cell(row: ComparedRow | None) -> str:
    if row is None:
        return "–"
    low, high = row.robust_ci95
    test = f"\np = {row.mcnemar.p:.2g}" if row.mcnemar else ""
    return f"[bold]{row.robust_accuracy:.1f}[/] \\[{low:.1f}, {high:.1f}]{test}"


def comparison_figure(defenses: Sequence[ReportedDefense], comparison: Comparison) -> Figure:
    """Robust accuracies with their intervals, one group of bars a column."""
    columns = comparison.columns
    figure = Figure(figsize=(max(4.0, 1.6 * len(columns) + 1.5), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(defenses)
    for number, defense in enumerate(defenses):
        rows = [(position, row) for position, column in enumerate(columns) if (row := _row_of(defense, column))]
        positions = [position + (number + 0.5) * width - 0.4 for position, _ in rows]
        values = [row.robust_accuracy for _, row in rows]
        error = [[max(0, row.robust_accuracy - row.robust_ci95[0]) for _, row in rows],
                 [max(0, row.robust_ci95[1] - row.robust_accuracy) for _, row in rows]]  # fmt: skip
        axes.bar(positions, values, width, color=COLOURS[number % len(COLOURS)], label=defense.name,
                 yerr=error, error_kw={"ecolor": INK, "capsize": 2})  # fmt: skip
    axes.set_xticks(range(len(columns)), [column.heading for column in columns])
    axes.set(ylim=(0, 100), ylabel="robust accuracy in %")
    style_axes(axes, INK)
    figure.legend(loc="outside upper left", frameon=False, fontsize=8)
    return figure
