"""Several reports beside each other: a column is one threat model, attack, budget and image set only."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.stats import binomtest

from maep.evaluation.reporting.figures import COLOURS, INK, style_axes
from maep.evaluation.scoring.plan import eps_text
from maep.runtime.errors import fail
from maep.storage.atomic import read_json

COLUMN = ("dataset", "image_set", "threat_model", "attack", "norm", "eps", "n")
Column = tuple[Any, ...]


@dataclass(frozen=True)
class Judgement:
    """One purifier before one classifier in one run. rows: its results by column."""

    run: Path
    classifier: str
    purifier: str
    rows: dict[Column, dict[str, Any]]

    @property
    def name(self) -> str:
        """As in tables: run, classifier, purifier."""
        return f"{self.run.name}: {self.classifier}, {self.purifier}"

    def right(self, column: Column) -> dict[int, bool]:
        """By sample index, whether the attacked image was classified rightly, from the records of the run.

        Raises UserError if there are no records, or others than the report was made of.
        """
        row = self.rows[column]
        folder = self.run / "evaluation" / row["records"]
        records = [read_json(path) for path in sorted(folder.glob("chunk-*.json"))]
        found = {
            index: prediction == label
            for record in records
            for index, prediction, label in zip(
                record["ids"], record["predictions"]["defended_adversarial"], record["labels"], strict=True
            )
        }
        if len(found) != row["n"] or abs(100 * sum(found.values()) / len(found) - row["robust_accuracy"]) > 0.01:
            fail(f"{folder}: its records are not those of {self.run / 'report.json'}; run stage=report again")
        return found


def read_judgements(run: Path) -> list[Judgement]:
    """What a run's report.json holds. Raises UserError if there is none, or one of an older version."""
    rows = read_json(run / "report.json")["results"]
    if any("records" not in row or "image_set" not in row for row in rows):
        fail(f"{run / 'report.json'}: does not name its records and images; run stage=evaluate and stage=report again")
    names = dict.fromkeys((row["classifier"], row["purifier"]) for row in rows)
    return [
        Judgement(run, *name, {
            tuple(row[key] for key in COLUMN): row for row in rows if (row["classifier"], row["purifier"]) == name
        })
        for name in names
    ]  # fmt: skip


def shared_columns(judgements: Sequence[Judgement]) -> list[Column]:
    """The columns that at least two runs have, in order. Raises UserError, saying what differs, if there is none."""
    columns = dict.fromkeys(column for one in judgements for column in one.rows)
    shared = [column for column in columns if len({one.run for one in judgements if column in one.rows}) > 1]
    if not shared:
        fail(f"nothing to compare in one column: {_differences(judgements)}")
    return shared


def _differences(judgements: Sequence[Judgement]) -> str:
    """What the runs do not share, such as `eps 8/255 in a, 4/255 in b`."""
    told = []
    for number, key in enumerate(COLUMN):
        values = {one.run: {column[number] for column in one.rows} for one in judgements}
        if any(not (first & second) for first, second in pairwise(values.values())):
            text = {run: ", ".join(_text(key, value) for value in sorted(own)) for run, own in values.items()}
            told.append(f"{key.replace('_', ' ')}: " + "; ".join(f"{value} in {run}" for run, value in text.items()))
    return " · ".join(told) or "no threat model, attack, eps and image set is the same in two of the runs"


def _text(key: str, value: Any) -> str:
    return eps_text(value) if key == "eps" else str(value)


def column_text(column: Column) -> str:
    """A column's head, in three lines."""
    named = dict(zip(COLUMN, column, strict=True))
    attack = named["attack"].replace("autoattack-standard", "AutoAttack")
    images = f"{named['dataset']} {named['image_set'][:6]}, n = {named['n']}"
    return f"{named['threat_model']}\n{attack} {named['norm']} {eps_text(named['eps'])}\n{images}"


def mcnemar(first: dict[int, bool], second: dict[int, bool]) -> dict[str, Any]:
    """McNemar's exact paired test of two defences on the same images.

    first, second: by sample index, whether each was right. Returns how many only one of them got right, and the
    two-sided p-value of so uneven a split if both were equally good. Raises ValueError for different images.
    """
    if first.keys() != second.keys():
        raise ValueError("not the same images")
    only_first = sum(first[index] and not second[index] for index in first)
    only_second = sum(second[index] and not first[index] for index in first)
    p = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": float(p)}


def comparison(judgements: Sequence[Judgement], columns: Sequence[Column]) -> dict[str, Any]:
    """All of it as JSON: for each column its rows, each tested against the first one there."""
    found = []
    for column in columns:
        there = [one for one in judgements if column in one.rows]
        right = [one.right(column) for one in there]
        tests = [None, *(mcnemar(right[0], other) for other in right[1:])]
        keys = ("clean_accuracy", "clean_ci95", "robust_accuracy", "robust_ci95", "average_accuracy")
        rows = [
            {"run": str(one.run), "classifier": one.classifier, "purifier": one.purifier,
             **{key: one.rows[column][key] for key in keys}, "mcnemar": test}
            for one, test in zip(there, tests, strict=True)
        ]  # fmt: skip
        found.append({**dict(zip(COLUMN, column, strict=True)), "rows": rows})
    return {"schema": 1, "columns": found}


def comparison_table(judgements: Sequence[Judgement], compared: dict[str, Any]) -> Table:
    """Robust accuracies in percent with interval; p of McNemar's test against the first row of the column."""
    table = Table(title="robust accuracy in % [95 % interval], p against the column's first row", box=SIMPLE_HEAD,
                  title_justify="left", padding=(0, 1, 0, 0))  # fmt: skip
    table.add_column("run: classifier, purifier", vertical="bottom")
    for column in compared["columns"]:
        table.add_column(column_text(tuple(column[key] for key in COLUMN)), justify="right")
    for one in judgements:
        cells = [_cell(one, column["rows"]) for column in compared["columns"]]
        table.add_row(one.name, *cells)
    return table


def _cell(one: Judgement, rows: Sequence[dict[str, Any]]) -> str:
    own = (str(one.run), one.classifier, one.purifier)
    for row in rows:
        if (row["run"], row["classifier"], row["purifier"]) == own:
            low, high = row["robust_ci95"]
            test = f"\np = {row['mcnemar']['p']:.2g}" if row["mcnemar"] else ""
            return f"[bold]{row['robust_accuracy']:.1f}[/] \\[{low:.1f}, {high:.1f}]{test}"
    return "–"


def comparison_figure(judgements: Sequence[Judgement], compared: dict[str, Any]) -> Figure:
    """Robust accuracies with their intervals, one group of bars a column."""
    columns = compared["columns"]
    figure = Figure(figsize=(max(4.0, 1.6 * len(columns) + 1.5), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(judgements)
    for number, one in enumerate(judgements):
        drawn = [(place, one.rows.get(tuple(column[key] for key in COLUMN))) for place, column in enumerate(columns)]
        rows = [(place + (number + 0.5) * width - 0.4, row) for place, row in drawn if row is not None]
        values = [row["robust_accuracy"] for _, row in rows]
        ends = [row["robust_ci95"] for _, row in rows]
        error = [[max(0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
                 [max(0, high - value) for value, (_, high) in zip(values, ends, strict=True)]]  # fmt: skip
        axes.bar([place for place, _ in rows], values, width, color=COLOURS[number % len(COLOURS)], label=one.name,
                 yerr=error, error_kw={"ecolor": INK, "capsize": 2})  # fmt: skip
    axes.set_xticks(range(len(columns)), [column_text(tuple(column[key] for key in COLUMN)) for column in columns])
    axes.set(ylim=(0, 100), ylabel="robust accuracy in %")
    style_axes(axes, INK)
    figure.legend(loc="outside upper left", frameon=False, fontsize=8)
    return figure
