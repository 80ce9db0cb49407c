"""One page over all tables of the paper: ours with interval, the paper's, the difference, the scale, the command."""

import shlex
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from maep.ablation.grid.sweep import OtherDefense, Sweep, read_sweep
from maep.ablation.running.point_records import PointState
from maep.ablation.tables.cells import Measure
from maep.ablation.tables.details import ROBUST, Detail, cost, lowest
from maep.ablation.tables.render import EMPTY, number, other_numbers
from maep.ablation.tables.summary_document import SweepSummary
from maep.config.load import sweep_names
from maep.runtime.text import shown_in_html


@dataclass(frozen=True)
class PageLine:
    """One number of a table, as text. empty: whether nothing was measured."""

    names: str
    value: str
    ours: str
    empty: bool
    spread: str
    paper: str
    difference: str


@dataclass(frozen=True)
class PageTable:
    """A table as the page shows it. progress: how many points are finished; figures: `{title: data URI}`;
    others: what was published of other defenses: which, how it was judged, numbers.
    """

    table: str
    title: str
    scale: str
    command: str
    lines: Sequence[PageLine]
    note: str = ""
    errata: Sequence[str] = ()
    progress: str = ""
    figures: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[tuple[str, str, str]] = ()

    @property
    def order(self) -> tuple[float, str]:
        """Numbered tables by number, a user's own after them; of one table by scale."""
        last = self.table.split()[-1:]
        return (int(last[0]) if last and last[0].isdigit() else float("inf")), self.scale


def render_paper(summaries: Sequence[Path]) -> str:
    """The page, as HTML that needs no other file.

    summaries: ablation.json files, of any sweeps and scales. Tables of the paper that none of them is about are
    there with the paper's numbers and empty cells. Raises UserError for a summary that cannot be read.
    """
    sweeps = [read_sweep(name) for name in sweep_names()]  # at full scale, where there is one
    known = {sweep.name: sweep.others for sweep in sweeps}
    measured = []
    for path in summaries:
        summary = SweepSummary.read(path)
        if not summary.others:  # as it was written before its table had any
            summary = replace(summary, others=known.get(summary.name, ()))
        measured.append(table_of_summary(summary, path.parent / "figures"))
    names = {table.table for table in measured}
    tables = [*measured, *(table_without_run(sweep) for sweep in sweeps if sweep.table and sweep.table not in names)]
    environment = Environment(
        loader=PackageLoader("maep.ablation.tables", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=shown_in_html,
    )
    template = environment.get_template("paper.html")
    return template.render(tables=sorted(tables, key=lambda table: table.order), run=len(measured))


def table_of_summary(summary: SweepSummary, figures: Path) -> PageTable:
    """What the page shows of an ablation.json. figures: the folder beside it."""
    lines = [
        _line([*cell.names, *filter(None, [cell.reading])], measure, cell.state)
        for cell in summary.cells
        for measure in cell.measures
    ]
    lines += [line for detail in summary.details for line in _lines_of_detail(detail)]
    images = {path.stem.replace("_", " "): _data_uri(path) for path in sorted(figures.glob("*.png"))}
    return PageTable(
        summary.table, summary.title, summary.scale, shlex.join(summary.command), lines, summary.note, summary.errata,
        f"{summary.finished} of {len(summary.points)} points finished", images,
        _others(summary.others),
    )  # fmt: skip


def _others(others: Sequence[OtherDefense]) -> list[tuple[str, str, str]]:
    return [(other.defense, other.attack, other_numbers(other)) for other in others]


def _data_uri(path: Path) -> str:
    """A PNG as the page carries it."""
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"


def table_without_run(sweep: Sweep) -> PageTable:
    """A table of which nothing has been run: the paper's numbers alone."""
    lines = [
        _line([*filter(None, names)], Measure(value, paper=paper), PointState.WAITING)
        for names, numbers in sweep.paper.items()
        for value, paper in zip(sweep.values, numbers, strict=True)
    ]
    command = f"python launch/local.py cfg=ablation/{sweep.name} --scale paper"
    return PageTable(
        sweep.table, sweep.title, "not run", command, lines, errata=sweep.errata, others=_others(sweep.others)
    )


def _lines_of_detail(detail: Detail) -> list[PageLine]:
    """Its costs, and the robust accuracies of elsewhere: as claimed beside ours, and as others found it."""
    costs = [
        PageLine(" · ".join(detail.names), measure.name.replace("_", " "), cost(measure), measure.mean is None, "",
                 EMPTY, EMPTY)
        for measure in detail.costs
    ]  # fmt: skip
    if detail.claim is None:
        return costs
    claimed, found = number(detail.claim.claimed, ROBUST), number(detail.claim.found, ROBUST)
    robust = PageLine(
        " · ".join(detail.names), f"lowest robust accuracy; found by {detail.claim.by}", lowest(detail),
        detail.lowest is None, "", f"{claimed} claimed, {found} found", EMPTY,
    )  # fmt: skip
    return [*costs, robust]


def _line(names: Sequence[str], measure: Measure, state: str) -> PageLine:
    empty, name = measure.mean is None, measure.name
    stands = empty and state not in (PointState.WAITING, PointState.FINISHED)
    return PageLine(
        names=" · ".join(names),
        value=name.replace("_", " "),
        ours=state if stands else number(measure.mean, name),
        empty=empty,
        spread="" if empty else _spread(measure),
        paper=number(measure.paper, name),
        difference=number(measure.difference, name, "+"),
    )


def _spread(measure: Measure) -> str:
    if measure.deviation is not None:
        return f"± {number(measure.deviation, measure.name)} over {measure.seeds} seeds"
    return "[{:.1f}, {:.1f}]".format(*measure.interval) if measure.interval else ""
