"""A figure a value of a sweep: ours with its spread, and the paper's, over the columns or rows of the table."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maep.ablation.grid.sweep import Sweep
from maep.ablation.tables.cells import Cell, Measure
from maep.ablation.tables.render import caption, labels, layout
from maep.evaluation.reporting.figures import drawn, legend_room, save_figure

LONGEST_TITLE = 30  # letters of the legend's title: the keys of lists side by side may be a page wide
MARKERS = "os^Dv"  # after ten colours the next mark


def draw_figures(sweep: Sweep, cells: Sequence[Cell], folder: Path) -> None:
    """Write VALUE.png for every value of which there is a number of ours."""
    for index, value in enumerate(sweep.values):
        if any(cell.measures[index].mean is not None for cell in cells):
            save_figure(value_figure(sweep, cells, index), folder / f"{value}.png")


def value_figure(sweep: Sweep, cells: Sequence[Cell], index: int) -> Figure:
    """Lines over the columns, one a row; with a single column, the rows, joined if their names are numbers.

    index: of the value, in the sweep's order.
    """
    heads, columns, rows = layout(sweep, cells)
    across = "" if len(heads) == len(sweep.axes) else sweep.axes[-1].title
    series = {", ".join(labels(sweep, row)): [cell.measures[index] for cell in row] for row in rows}
    if len(columns) == 1:
        columns, series = list(series), {"": [measures[0] for measures in series.values()]}
    is_joined = len(series) > 1 or all(map(_is_number, columns))
    title = drawn(", ".join(heads)) if len(series) > 1 and len(", ".join(heads)) <= LONGEST_TITLE else None
    beside, height = legend_room([title or "", *series, "ours", "paper"])
    # An inch a column keeps their names apart; wider than 6 inches, the letters would be small on a page.
    width = min(max(4.5, 1.1 * len(columns) + 2), 6.0)
    figure = Figure(figsize=(width + beside, max(3.6, height + 0.3)), layout="constrained")
    axes = figure.subplots()
    for number, (name, measures) in enumerate(series.items()):
        _draw(axes, name, measures, f"C{number % 10}", MARKERS[number // 10 % len(MARKERS)], is_joined=is_joined)
    _set_names(axes, columns)
    axes.set_xlabel(drawn(across))
    axes.set_ylabel(sweep.values[index].replace("_", " "))
    axes.set_title(drawn(caption(sweep).split(" (")[0]), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    if any(measure.paper is not None for row in rows for measure in (cell.measures[index] for cell in row)):
        axes.plot([], [], color="black", marker="o", label="ours")
        axes.plot([], [], color="black", marker="o", markerfacecolor="none", linestyle="--", alpha=0.6, label="paper")
    if any(axes.get_legend_handles_labels()):  # a single line without the paper's has no name
        figure.legend(loc="outside right upper", fontsize=8, frameon=False, title=title, title_fontsize=8)
    return figure


def _is_number(name: str) -> bool:
    """Whether it is one, or a fraction such as 8/255."""
    try:
        Fraction(name)
    except ValueError:
        return False
    return True


def _set_names(axes: Axes, columns: Sequence[str]) -> None:
    """Names of the columns: level where they are short, and upright where they are many."""
    longest = max(map(len, columns))
    turn = 0 if longest <= 12 and len(columns) <= 8 else 20 if len(columns) <= 6 else 90
    axes.set_xticks(range(len(columns)), list(map(drawn, columns)), rotation=turn, fontsize=8 if turn == 90 else None)


def _draw(axes: Axes, name: str, measures: Sequence[Measure], color: str, marker: str, *, is_joined: bool) -> None:
    """Ours: filled marks with error bars; the paper's: hollow ones, dashed. is_joined: by lines, both."""
    measured = [(x, m, m.mean) for x, m in enumerate(measures) if m.mean is not None]
    if measured:
        below, above = zip(*(_errors(m, mean) for _, m, mean in measured), strict=True)
        axes.errorbar([x for x, _, _ in measured], [mean for _, _, mean in measured], yerr=[below, above], color=color,
                      marker=marker, linestyle="-" if is_joined else "", capsize=3, label=drawn(name))  # fmt: skip
    published = [(x, m.paper) for x, m in enumerate(measures) if m.paper is not None]
    if published:
        axes.plot(*zip(*published, strict=True), color=color, marker=marker, markerfacecolor="none",
                  linestyle="--" if is_joined else "", alpha=0.6, label=None if measured else drawn(name))  # fmt: skip


def _errors(measure: Measure, mean: float) -> tuple[float, float]:
    """How far the error bar reaches below and above."""
    if measure.deviation is not None:
        return measure.deviation, measure.deviation
    low, high = measure.interval or (mean, mean)
    return max(0.0, mean - low), max(0.0, high - mean)
