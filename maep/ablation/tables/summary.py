"""What a sweep leaves in its directory: ablation.json, table.md, table.tex and figures/.

All of it is collected from the points, so it can be made at any time, and by anyone, while others still run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from maep.ablation.grid.points import Point
from maep.ablation.grid.sweep import Sweep
from maep.ablation.running.overhead import sweep_time
from maep.ablation.running.point_records import read_record, stage_seconds
from maep.ablation.running.pretrained import pretrained_by
from maep.ablation.running.rungs import Stop, halving_state, status_of
from maep.ablation.tables.cells import Cell, read_cells
from maep.ablation.tables.details import Detail, latex_details, markdown_details, read_details
from maep.ablation.tables.render import latex_table, markdown_table
from maep.ablation.tables.summary_document import (
    SUMMARY,
    AttackCount,
    AttackCounts,
    AxisNames,
    PointEntry,
    PretrainingCount,
    SweepSummary,
    read_summary,
)
from maep.evaluation.reporting.provenance import environment
from maep.runtime.errors import fail
from maep.runtime.text import masked
from maep.storage.atomic import atomic_file
from maep.storage.locks import one_at_a_time


def check_directory(sweep: Sweep, directory: Path) -> None:
    """Raise UserError if the directory holds the table of another sweep or of another scale."""
    summary = read_summary(directory)
    if summary is None:
        return
    for name in ("name", "scale"):
        present, asked = getattr(summary, name), getattr(sweep, name)
        if present != asked:
            fail(f"run.dir={directory}: holds the table of {name} {present}, not {asked}; choose another run.dir")


def write_summary(sweep: Sweep, points: Sequence[Point], directory: Path, command: Sequence[str]) -> SweepSummary:
    """Write ablation.json, both tables and the figures; returns what ablation.json says.

    command: how to make it again. Of workers that end together one writes after the other, so the last sees all.
    """
    # matplotlib and torch, which who only asks for a sweep's points does without
    from maep.ablation.tables.purification import draw_purification
    from maep.ablation.tables.value_figures import draw_figures

    with one_at_a_time(directory):
        cells = read_cells(sweep, points)
        details = read_details(sweep, points, cells)
        summary = _summary(sweep, points, directory, command, cells, details)
        texts = {
            "table.md": markdown_table(sweep, cells) + markdown_details(sweep, details),
            "table.tex": latex_table(sweep, cells) + latex_details(sweep, details),
        }
        for name, text in texts.items():
            with atomic_file(directory / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        draw_figures(sweep, cells, directory / "figures")
        draw_purification(sweep, points, directory / "figures")
        summary.write(directory / SUMMARY)
    return summary


def _summary(
    sweep: Sweep,
    points: Sequence[Point],
    directory: Path,
    command: Sequence[str],
    cells: Sequence[Cell],
    details: Sequence[Detail],
) -> SweepSummary:
    stopped = halving_state(sweep, points).stopped
    entries = tuple(_point_entry(point, stopped) for point in points)
    return SweepSummary(
        name=sweep.name, table=sweep.table, title=sweep.title, scale=sweep.scale, note=sweep.note, errata=sweep.errata,
        command=tuple(map(masked, command)), environment=environment(list(command)),
        axes=tuple(AxisNames(axis.title, axis.names) for axis in sweep.axes),
        readings=sweep.row_selectors, values=sweep.values, halving=sweep.halving,
        attacked=attack_counts(points), pretrainings=pretraining_count(points),
        seconds=sweep_time(directory, sum(entry.seconds for entry in entries)),
        points=entries, cells=tuple(cells), details=tuple(details), others=sweep.others,
    )  # fmt: skip


def _point_entry(point: Point, stopped: Mapping[str, Stop]) -> PointEntry:
    record = read_record(point)
    return PointEntry(
        point.names, point.seed, point.identity, str(point.directory), str(status_of(point, stopped)),
        record.reason, record.seconds, stopped.get(point.identity),
    )  # fmt: skip


def pretraining_count(points: Sequence[Point]) -> PretrainingCount:
    """Of how many points the pretraining is finished, and how many of them trained themselves."""
    finished = [point for point in points if "pretrain" in stage_seconds(point)]
    return PretrainingCount(len(finished), sum(pretrained_by(point) is None for point in finished))


def attack_counts(points: Sequence[Point]) -> AttackCounts:
    """How much of the training and test images was attacked while these points ran, over all attempts."""
    files = [read_record(point).attacked for point in points]
    return AttackCounts(_count([f.training for f in files]), _count([f.test for f in files]))


def _count(files_of_points: Sequence[Mapping[str, int]]) -> AttackCount:
    """files_of_points: `{path: time}` of each point; two points that ran at once have seen the same piece made."""
    attacks = {attack for files in files_of_points for attack in files.items()}
    paths = {path for path, _ in attacks}
    return AttackCount(len(attacks), len(paths), len({Path(path).parent for path in paths}))
