"""The second table of a sweep: what each row costs, and what was claimed and found of it elsewhere, beside ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from statistics import fmean
from typing import Any

from maep.ablation.grid.points import Point
from maep.ablation.grid.row_selector import row_of
from maep.ablation.grid.sweep import Claim, Sweep
from maep.ablation.running.point_records import PointState, read_record
from maep.ablation.tables.cells import Cell, Measure
from maep.ablation.tables.render import EMPTY, line_of_markdown, number
from maep.evaluation.reporting.report_row import ReportRow
from maep.runtime.errors import fail, nearest
from maep.runtime.text import latex, markdown

ROBUST = "robust_accuracy"
HEADS = ("claimed", "found", "ours, lowest", "found by")


@dataclass(frozen=True)
class Detail:
    """names: along the axes; costs: measures of the point's first row; claim: of elsewhere, None where there is none.

    lowest: our robust accuracy against the strongest of the attackers that the table reads; None before it was run.
    lowest_images: how many images it is of, since who knows a defense often attacks fewer than who does not.
    """

    names: tuple[str, ...]
    costs: tuple[Measure, ...]
    claim: Claim | None = None
    lowest: float | None = None
    lowest_images: int | None = None


def read_details(sweep: Sweep, points: Sequence[Point], cells: Sequence[Cell]) -> list[Detail]:
    """One for the names of every row, in order; [] for a sweep that says nothing of costs and claims."""
    if not sweep.costs and not sweep.claims:
        return []
    return [
        _detail(sweep, names, [point for point in points if point.names == names], cells)
        for names in product(*(axis.names for axis in sweep.axes))
    ]


def _detail(sweep: Sweep, names: tuple[str, ...], seeds: Sequence[Point], cells: Sequence[Cell]) -> Detail:
    finished = [point for point in seeds if read_record(point).state == PointState.FINISHED]
    rows = [_first_row(sweep, point) for point in finished]
    costs = tuple(_cost(sweep, name, rows) for name in sweep.costs)
    strongest = _lowest(names, cells)
    return Detail(names, costs, sweep.claims.get(names), strongest.mean, strongest.images)


def _first_row(sweep: Sweep, point: Point) -> Mapping[str, Any]:
    """Of those that the table reads of a point's report, in order; {} for one of which it reads none."""
    rows = (row_of(point.directory / "report.json", selector) for selector in sweep.row_selectors.values())
    return next((row for row in rows if row is not None), {})


def _cost(sweep: Sweep, name: str, rows: Sequence[Mapping[str, Any]]) -> Measure:
    """Older reports lack some; of those there is none. Raises UserError for what no report has."""
    known = [item.name for item in fields(ReportRow)]
    if name not in known:
        fail(f"{sweep.file}: costs: {name}: not in a report{nearest(name, known)}")
    numbers = [float(row[name]) for row in rows if row.get(name) is not None]
    return Measure(name, len(numbers), fmean(numbers)) if numbers else Measure(name)


def _lowest(names: tuple[str, ...], cells: Sequence[Cell]) -> Measure:
    """Of equal ones that of the most images."""
    measures = (measure for cell in cells if cell.names == names for measure in cell.measures)
    measured = [(each.mean, -(each.images or 0), each) for each in measures if each.name == ROBUST and each.seeds]
    return min(measured, key=lambda entry: entry[:2])[2] if measured else Measure(ROBUST)


# --- as text ---


def lowest(detail: Detail) -> str:
    """The accuracy, and of how many images it is where the reports say."""
    images = "" if detail.lowest_images is None else f" ({detail.lowest_images} images)"
    return number(detail.lowest, ROBUST) + images


def cost(measure: Measure) -> str:
    """Counts in whole numbers, what is measured with three digits."""
    if measure.mean is None:
        return EMPTY
    return f"{measure.mean:,.0f}" if measure.mean >= 1000 or measure.mean == 0 else f"{measure.mean:.3g}"


def columns_of(detail: Detail) -> list[str]:
    """The cells of its row, without the names."""
    claim = detail.claim or Claim("")
    accuracies = [number(claim.claimed, ROBUST), number(claim.found, ROBUST), lowest(detail)]
    return [*map(cost, detail.costs), *accuracies, claim.by or EMPTY]


def heads_of(sweep: Sweep) -> list[str]:
    """Those of its columns."""
    return [*(axis.title for axis in sweep.axes), *(name.replace("_", " ") for name in sweep.costs), *HEADS]


def markdown_details(sweep: Sweep, details: Sequence[Detail]) -> str:
    """The table, after an empty line; "" where there is none."""
    if not details:
        return ""
    heads = heads_of(sweep)
    rows = [line_of_markdown([*detail.names, *columns_of(detail)]) for detail in details]
    title = markdown(f"{sweep.title}: costs, and robust accuracies of elsewhere, as claimed and as found by others")
    lines = [f"**{title}**", "", line_of_markdown(heads), line_of_markdown(["---"] * len(heads)), *rows]
    return "\n" + "\n".join(lines) + "\n"


def latex_details(sweep: Sweep, details: Sequence[Detail]) -> str:
    """The same as a tabular with booktabs' rules; "" where there is none."""
    if not details:
        return ""
    heads, axes = heads_of(sweep), len(sweep.axes)
    lines = [
        "\\begin{table}", "\\centering", f"\\caption{{{latex(f'{sweep.title}: costs and claims')}}}",
        f"\\begin{{tabular}}{{{'l' * axes}{'r' * (len(heads) - axes - 1)}l}}", "\\toprule",
        " & ".join(map(latex, heads)) + " \\\\", "\\midrule",
        *(" & ".join(map(latex, [*detail.names, *columns_of(detail)])) + " \\\\" for detail in details),
        "\\bottomrule", "\\end{tabular}", "\\end{table}",
    ]  # fmt: skip
    return "\n" + "\n".join(lines) + "\n"
