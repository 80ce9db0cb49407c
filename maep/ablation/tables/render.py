"""A sweep's table as Markdown and as LaTeX: rows, columns, ours and the paper's."""

from collections.abc import Sequence

from maep.ablation.grid.sweep import OtherDefense, Sweep
from maep.ablation.running.point_records import PointState
from maep.ablation.tables.cells import Cell, Measure
from maep.runtime.text import latex, markdown

EMPTY = "–"


def layout(sweep: Sweep, cells: Sequence[Cell]) -> tuple[list[str], list[str], list[list[Cell]]]:
    """Heads of the row labels, names of the columns, and the cells row by row.

    Columns are the row selectors if there are several, else the last axis if there are several, else one.
    """
    heads = [axis.title for axis in sweep.axes]
    if _selectors_are_columns(sweep):
        columns, rows = list(sweep.row_selectors), [cell.names for cell in cells]
        index = {(cell.names, cell.reading): cell for cell in cells}
    else:
        heads, columns = heads[:-1], list(sweep.axes[-1].names)
        rows = [cell.names[:-1] for cell in cells]
        index = {(cell.names[:-1], cell.names[-1]): cell for cell in cells}
    return heads, columns, [[index[row, column] for column in columns] for row in dict.fromkeys(rows)]


def _selectors_are_columns(sweep: Sweep) -> bool:
    return len(sweep.row_selectors) > 1 or len(sweep.axes) < 2


def labels(sweep: Sweep, row: Sequence[Cell]) -> list[str]:
    """The names that begin a row."""
    return list(row[0].names if _selectors_are_columns(sweep) else row[0].names[:-1])


def number(value: float | None, name: str, sign: str = "") -> str:
    """A value of this name, or a dash: percents with two places, else four of what is small. sign: `+` for either."""
    if value is None:
        return EMPTY
    places = 2 if abs(value) >= 1 or value == 0 or name.endswith("accuracy") else 4
    return f"{value:{sign}.{places}f}"


def spread(measure: Measure) -> str:
    """`± deviation` over seeds, the interval of a single run, or nothing."""
    if measure.deviation is not None:
        return f" ± {number(measure.deviation, measure.name)}"
    return f" [{measure.interval[0]:.1f}, {measure.interval[1]:.1f}]" if measure.interval else ""


def ours(cell: Cell) -> str:
    """All values of a cell; a cell without any, or not of all its points, tells their state, unless that is the usual
    one.
    """
    if all(measure.mean is None for measure in cell.measures):
        return EMPTY if cell.state in (PointState.WAITING, PointState.FINISHED) else cell.state
    numbers = " / ".join(number(measure.mean, measure.name) + spread(measure) for measure in cell.measures)
    return numbers if cell.state == PointState.FINISHED else f"{numbers} ({cell.state})"


def papers(cell: Cell) -> str:
    """The published values of a cell."""
    if all(measure.paper is None for measure in cell.measures):
        return EMPTY
    return " / ".join(number(measure.paper, measure.name) for measure in cell.measures)


def differences(cell: Cell) -> str:
    """Ours minus the paper's."""
    if all(measure.difference is None for measure in cell.measures):
        return EMPTY
    return " / ".join(number(measure.difference, measure.name, "+") for measure in cell.measures)


def caption(sweep: Sweep) -> str:
    """One line: which table, at which scale, of what."""
    table = f"{sweep.table}. " if sweep.table else ""
    return f"{table}{sweep.title} (scale {sweep.scale}; {' / '.join(sweep.values).replace('_', ' ')})"


def markdown_table(sweep: Sweep, cells: Sequence[Cell]) -> str:
    """A line of ours and one of the paper's a row, or side by side if there is one column; then note, other
    defenses and errata.
    """
    heads, columns, rows = layout(sweep, cells)
    several = len(columns) > 1
    top = [*heads, *(["", *columns] if several else ["ours", "paper", "difference"])]
    lines = [f"**{markdown(caption(sweep))}**", "", line_of_markdown(top), line_of_markdown(["---"] * len(top))]
    for row in rows:
        if several:
            lines += [line_of_markdown(line) for line in _pair_of_lines(sweep, row)]
        else:
            lines.append(line_of_markdown([*labels(sweep, row), ours(row[0]), papers(row[0]), differences(row[0])]))
    lines += ["", *([markdown(sweep.note), ""] if sweep.note else []), *_others(sweep)]
    lines += [f"Erratum: {markdown(text)}" for text in sweep.errata]
    return "\n".join(lines).rstrip() + "\n"


def other_numbers(other: OtherDefense) -> str:
    """The published values of another defense."""
    return " / ".join(number(value, other.attack) for value in other.numbers)


def _others(sweep: Sweep) -> list[str]:
    """A table of its own, since what attacked them differs."""
    if not sweep.others:
        return []
    lines = [line_of_markdown([other.defense, other.attack, other_numbers(other)]) for other in sweep.others]
    return [line_of_markdown(["other defenses", "attacked by", "published"]), line_of_markdown(["---"] * 3), *lines, ""]


def _pair_of_lines(sweep: Sweep, row: Sequence[Cell]) -> tuple[list[str], list[str]]:
    names = labels(sweep, row)
    return [*names, "ours", *map(ours, row)], [*("" for _ in names), "paper", *map(papers, row)]


def line_of_markdown(parts: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(map(markdown, parts)) + " |"


def latex_table(sweep: Sweep, cells: Sequence[Cell]) -> str:
    """A tabular with booktabs' rules: a line of ours, below it the paper's."""
    heads, columns, rows = layout(sweep, cells)
    lines = [
        "\\begin{table}", "\\centering", f"\\caption{{{latex(caption(sweep))}}}",
        f"\\begin{{tabular}}{{{'l' * (len(heads) + 1)}{'r' * len(columns)}}}", "\\toprule",
        " & ".join(map(latex, [*heads, "", *columns])) + " \\\\", "\\midrule",
    ]  # fmt: skip
    for row in rows:
        lines += [" & ".join(map(latex, line)) + " \\\\" for line in _pair_of_lines(sweep, row)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]) + "\n"
