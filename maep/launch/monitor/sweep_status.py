"""How the points of a sweep stand: finished, running with the time left, waiting, or failed and why."""

import shlex
from collections import Counter
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from maep.ablation.grid.points import Point
from maep.ablation.running.point_records import PointState, read_record
from maep.ablation.running.rungs import halving_state, status_of
from maep.ablation.study import read_study
from maep.launch.monitor.screen import duration, screen
from maep.launch.monitor.stage_progress import Progress, progress_of
from maep.pipeline.stage_records import StageRecord


def print_sweep(directory: Path) -> None:
    """Print how every point stands: finished, running with the time left, waiting, or failed and why."""
    study, command = read_study(directory)
    records = [(point, read_record(point)) for point in study.points]
    stopped = halving_state(study.sweep, study.points).stopped
    states = [status_of(point, stopped) for point in study.points]
    counts = Counter(status.kind for status in states)
    title = f"{directory}: " + ", ".join(f"{count} {state}" for state, count in counts.items())
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("point", *(axis.title for axis in study.sweep.axes), "seed", "state", "time", "progress", "left"):
        table.add_column(name, overflow="fold")
    for number, (point, record) in enumerate(records):
        stage, progress = _under_way(point) if record.state == PointState.RUNNING else ("", None)
        remaining = duration(progress.remaining) if progress and progress.remaining is not None else ""
        seconds = duration(record.seconds) if record.seconds else ""
        done = f"{stage} {progress or ''}".strip()
        table.add_row(str(number), *point.names, str(point.seed), str(states[number]), seconds, done, remaining)
    failed = [f"point {n}: {r.reason}" for n, (_, r) in enumerate(records) if r.state == PointState.FAILED]
    again = [f"failed points run again with: {shlex.join(command)}"] if failed else []
    screen().print(Group(table, *map(Text, [*failed, *again])), highlight=False)


def _under_way(point: Point) -> tuple[str, Progress | None]:
    """The stage that a point is at, and how far that is."""
    for path in sorted((point.directory / "stages").glob("*.json"), key=lambda path: -path.stat().st_mtime):
        if not StageRecord.read(path).finished:
            return path.stem, progress_of(path.stem, point.settings)
    return "", None
