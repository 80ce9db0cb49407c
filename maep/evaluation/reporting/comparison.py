"""Several reports beside each other: a column is one threat model, attack and budget, on the images that all share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from scipy.stats import binomtest

from maep.attacks.catalog import title_of
from maep.evaluation.audit.finding import ALARM
from maep.evaluation.reporting.figures import COLOURS, INK, drawn, legend_room, style_axes
from maep.evaluation.reporting.report_document import REPORT, Report
from maep.evaluation.reporting.report_row import Interval, ReportRow
from maep.evaluation.reporting.rows import percent_with_interval
from maep.evaluation.scoring.chunk_record import ChunkRecord, read_row
from maep.evaluation.scoring.tasks import eps_text
from maep.runtime.errors import fail
from maep.storage.documents import Document

# Points by which a report and its records may differ: accuracies are rounded to four digits.
ROUNDING = 0.01


@dataclass(frozen=True)
class Condition:
    """What rows must share to be compared, besides images."""

    threat_model: str
    attack: str
    norm: str
    eps: float

    @classmethod
    def of(cls, row: ReportRow) -> "Condition":
        """The condition of a row of a report."""
        return cls(*(getattr(row, item.name) for item in fields(Condition)))


@dataclass(frozen=True)
class Column:
    """A condition on images. image_set: as in the report's rows, several joined by `+`; n: images that all share."""

    dataset: str
    image_set: str
    threat_model: str
    attack: str
    norm: str
    eps: float
    n: int

    @property
    def heading(self) -> str:
        """Its head, in three lines."""
        sets = "+".join(name[:6] for name in self.image_set.split("+"))
        images = f"{self.dataset} {sets}, n = {self.n}"
        return f"{self.threat_model}\n{title_of(self.attack)} {self.norm} {eps_text(self.eps)}\n{images}"


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two defenses: images that only one of them got right, and the two-sided p-value."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class ComparedRow:
    """A defense in a column. Accuracies and intervals in percent; mcnemar: against the column's first row.

    alarms: checks that speak against these numbers, empty for none. evaluated: images of the report, of which the
    column's n are compared.
    """

    run: str
    classifier: str
    purifier: str
    clean_accuracy: float
    clean_ci95: Interval
    robust_accuracy: float
    robust_ci95: Interval
    average_accuracy: float
    mcnemar: McNemar | None
    alarms: tuple[str, ...] = ()
    evaluated: int = 0


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
class ImageAnswer:
    """What a defense made of one image. clean, robust: whether it was right, before and after the attack."""

    label: int
    clean: bool
    robust: bool


# By image: its number in the image set, or its key and which one of equal images it is.
Answers = Mapping[object, ImageAnswer]


@dataclass(frozen=True)
class ReportedDefense:
    """One purifier before one classifier in one run. rows: its results by condition; alarms: with all of them."""

    run: Path
    classifier: str
    purifier: str
    rows: dict[Condition, ReportRow]
    alarms: tuple[str, ...]

    @property
    def name(self) -> str:
        """As in tables: run, classifier, purifier."""
        return f"{self.run.name}: {self.classifier}, {self.purifier}"

    def records(self, condition: Condition) -> list[ChunkRecord]:
        """The records behind a row.

        Raises UserError if there are none, or others than the report was made of.
        """
        row = self.rows[condition]
        folder = self.run / "evaluation" / row.records
        records = read_row(self.run / "evaluation", row.records)
        right = [right for record in records for right in record.correct("defended_adversarial")]
        if len(right) != row.n or abs(100 * sum(right) / len(right) - row.robust_accuracy) > ROUNDING:
            fail(f"{folder}: its records are not those of {self.run / REPORT}; run stage=report again")
        return records


def answers_of(records: Sequence[ChunkRecord], *, by_key: bool) -> Answers:
    """What a defense made of each image. by_key: images by what they show, else by their number in the set."""
    times: Counter[str] = Counter()
    answers: dict[object, ImageAnswer] = {}
    for record in records:
        clean, robust = record.correct("defended_clean"), record.correct("defended_adversarial")
        names: Sequence[object] = record.keys if by_key else record.ids
        for name, label, *right in zip(names, record.labels, clean, robust, strict=True):
            if isinstance(name, str):
                times[name] += 1
                answers[name, times[name]] = ImageAnswer(label, *right)
            else:
                answers[name] = ImageAnswer(label, *right)
    return answers


def read_defenses(run: Path) -> list[ReportedDefense]:
    """What a run's report.json holds. Raises UserError if there is none, or one of another version."""
    report = Report.read(run / REPORT)
    rows = report.results
    names = dict.fromkeys((row.classifier, row.purifier) for row in rows)
    return [
        ReportedDefense(
            run, *name, {Condition.of(row): row for row in rows if (row.classifier, row.purifier) == name},
            _alarms(report, name),
        )
        for name in names
    ]  # fmt: skip


def _alarms(report: Report, name: tuple[str, str]) -> tuple[str, ...]:
    """Alarms that go with the numbers of a defense; the first reports had them among their findings alone."""
    listed = [row.alarms for row in report.results if (row.classifier, row.purifier) == name]
    honesty = report.honesty.get(name[1])
    older = (finding.check for finding in honesty.findings if finding.level == ALARM) if honesty else ()
    named = (alarm for alarms in listed if alarms is not None for alarm in alarms)
    return tuple(dict.fromkeys(older if None in listed else named))


@dataclass(frozen=True)
class Group:
    """Defenses in one condition whose images can be told apart alike. answers: of each defense."""

    condition: Condition
    defenses: Sequence[ReportedDefense]
    answers: Sequence[Answers]

    def shared(self) -> list[object]:
        """The images that all of them have, in the first one's order."""
        return [image for image in self.answers[0] if all(image in each for each in self.answers)]

    def has_several_runs(self) -> bool:
        """Whether there is anything to compare."""
        return len({defense.run for defense in self.defenses}) > 1


def compare(defenses: Sequence[ReportedDefense]) -> Comparison:
    """For each condition that several runs have its rows, each tested against the first, on the images that all share.

    Raises UserError, saying what differs, if no two runs share a condition, or none an image in it.
    """
    conditions = dict.fromkeys(condition for defense in defenses for condition in defense.rows)
    groups = [group for condition in conditions for group in _groups(condition, defenses)]
    if not groups:
        fail(f"nothing to compare in one column: {_differences(defenses)}")
    return Comparison(tuple(_compared(group) for group in groups))


def _groups(condition: Condition, defenses: Sequence[ReportedDefense]) -> list[Group]:
    """All defenses that have a condition, if they share images; else those of each image set for themselves."""
    present = [defense for defense in defenses if condition in defense.rows]
    if len({defense.run for defense in present}) < 2:
        return []
    records = {id(defense): defense.records(condition) for defense in present}
    sets: dict[str, list[ReportedDefense]] = {}
    for defense in present:
        sets.setdefault(defense.rows[condition].image_set, []).append(defense)
    has_keys = all(record.keys for each in records.values() for record in each)

    def group(members: Sequence[ReportedDefense], *, by_key: bool) -> Group:
        answers = [answers_of(records[id(defense)], by_key=by_key) for defense in members]
        return Group(condition, members, answers)

    if len(sets) > 1 and has_keys and (whole := group(present, by_key=True)).shared():
        return [whole]
    parts = [group(members, by_key=False) for members in sets.values()]
    return [part for part in parts if part.has_several_runs() and part.shared()]


def _differences(defenses: Sequence[ReportedDefense]) -> str:
    """What the runs do not share, such as `eps: 8/255 in a; 4/255 in b`."""
    differences = []
    for name in (*(item.name for item in fields(Condition)), "dataset", "image_set"):
        values = {each.run: {getattr(row, name) for row in each.rows.values()} for each in defenses}
        if any(not (first & second) for first, second in pairwise(values.values())):
            texts = [f"{_values_text(name, sorted(of_run))} in {run}" for run, of_run in values.items()]
            differences.append(f"{name.replace('_', ' ')}: " + "; ".join(texts))
    return " · ".join(differences) or "no threat model, attack, eps and image is the same in two of the runs"


def _values_text(key: str, values: Sequence[float | str]) -> str:
    return ", ".join(eps_text(float(value)) if key == "eps" else str(value) for value in values)


def mcnemar(first: Mapping[object, bool], second: Mapping[object, bool]) -> McNemar:
    """McNemar's exact paired test of two defenses on the same images.

    first, second: by image, whether each was right. The p-value is that of so uneven a split if both were equally good.
    Raises ValueError for different images.
    """
    if first.keys() != second.keys():
        raise ValueError("not the same images")
    only_first = sum(first[index] and not second[index] for index in first)
    only_second = sum(second[index] and not first[index] for index in first)
    p = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    return McNemar(only_first, only_second, float(p))


def _compared(group: Group) -> ComparedColumn:
    images, rows = group.shared(), [defense.rows[group.condition] for defense in group.defenses]
    for defense, answers in zip(group.defenses, group.answers, strict=True):
        for image in images:
            labels = group.answers[0][image].label, answers[image].label
            if labels[0] != labels[1]:
                fail(
                    f"image {image}: has label {labels[0]} in {group.defenses[0].run} and {labels[1]} in {defense.run}"
                )
    robust = [{image: answers[image].robust for image in images} for answers in group.answers]
    tests = [None, *(mcnemar(robust[0], other) for other in robust[1:])]
    return ComparedColumn(
        "+".join(dict.fromkeys(row.dataset for row in rows)),
        "+".join(dict.fromkeys(row.image_set for row in rows)),
        **vars(group.condition),
        n=len(images),
        rows=tuple(
            _compared_row(defense, group.condition, [answers[image] for image in images], test)
            for defense, answers, test in zip(group.defenses, group.answers, tests, strict=True)
        ),
    )


def _compared_row(
    defense: ReportedDefense, condition: Condition, answers: Sequence[ImageAnswer], test: McNemar | None
) -> ComparedRow:
    n = len(answers)
    clean, clean_ci95 = percent_with_interval(sum(answer.clean for answer in answers), n)
    robust, robust_ci95 = percent_with_interval(sum(answer.robust for answer in answers), n)
    return ComparedRow(
        str(defense.run), defense.classifier, defense.purifier, clean, clean_ci95, robust, robust_ci95,
        round((clean + robust) / 2, 4), test, defense.alarms, defense.rows[condition].n,
    )  # fmt: skip


def notes_on_images(comparison: Comparison) -> list[str]:
    """Where fewer images are compared than a run was evaluated on, in plain sentences."""
    return [
        f"{column.threat_model} {column.attack} {column.norm} {eps_text(column.eps)}: the {column.n} images that all "
        f"rows share, of {', '.join(f'{row.evaluated} in {row.run}' for row in column.rows)}"
        for column in comparison.columns
        if any(row.evaluated != column.n for row in column.rows)
    ]


def comparison_table(defenses: Sequence[ReportedDefense], comparison: Comparison) -> Table:
    """Robust accuracies in percent with interval; p of McNemar's test against the first row of the column."""
    table = Table(title="robust accuracy in % [95 % interval], p against the column's first row", box=SIMPLE_HEAD,
                  title_justify="left", padding=(0, 1, 0, 0))  # fmt: skip
    table.add_column("run: classifier, defense", vertical="bottom")
    for column in comparison.columns:
        table.add_column(column.heading, justify="right")
    for defense in defenses:
        cells = [_cell(_row_of(defense, column)) for column in comparison.columns]
        table.add_row(defense.name, *cells)
    lines = [f"! {each.name}: alarms: {', '.join(each.alarms)}" for each in defenses if each.alarms]
    table.caption, table.caption_justify, table.caption_style = "\n".join(lines) or None, "left", "bold red"
    return table


def _row_of(defense: ReportedDefense, column: ComparedColumn) -> ComparedRow | None:
    """The row of a defense in a column, if it has one."""
    name = (str(defense.run), defense.classifier, defense.purifier)
    return next((row for row in column.rows if (row.run, row.classifier, row.purifier) == name), None)


def _cell(row: ComparedRow | None) -> Text:
    if row is None:
        return Text("–")
    low, high = row.robust_ci95
    return Text.assemble(
        (f"{row.robust_accuracy:.1f}", "bold"), f" [{low:.1f}, {high:.1f}]", (" !" if row.alarms else "", "bold red"),
        f"\np = {row.mcnemar.p:.2g}" if row.mcnemar else "",
    )  # fmt: skip


def comparison_figure(defenses: Sequence[ReportedDefense], comparison: Comparison) -> Figure:
    """Robust accuracies with their intervals, one group of bars a column; hatched where an alarm goes with them."""
    columns = comparison.columns
    breadth, height = legend_room([_legend(defense) for defense in defenses])
    figure = Figure(figsize=(max(4.0, 1.6 * len(columns) + 1.5, breadth), max(4.2, 3.2 + height)), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(defenses)
    for number, defense in enumerate(defenses):
        rows = [(position, row) for position, column in enumerate(columns) if (row := _row_of(defense, column))]
        positions = [position + (number + 0.5) * width - 0.4 for position, _ in rows]
        values = [row.robust_accuracy for _, row in rows]
        error = [[max(0, row.robust_accuracy - row.robust_ci95[0]) for _, row in rows],
                 [max(0, row.robust_ci95[1] - row.robust_accuracy) for _, row in rows]]  # fmt: skip
        axes.bar(positions, values, width, color=COLOURS[number % len(COLOURS)], label=_legend(defense),
                 hatch="//" if defense.alarms else None, yerr=error,
                 error_kw={"ecolor": INK, "capsize": 2})  # fmt: skip
    axes.set_xticks(range(len(columns)), [drawn(column.heading) for column in columns])
    axes.set(ylim=(0, 100), ylabel="robust accuracy in %")
    style_axes(axes, INK)
    figure.legend(loc="outside upper left", frameon=False, fontsize=8)
    return figure


def _legend(defense: ReportedDefense) -> str:
    alarms = f"\n! alarms: {', '.join(defense.alarms)}" if defense.alarms else ""
    return drawn(defense.name + alarms)
