"""What a sweep would do: its points, what they share, and what is finished. Runs, submits and writes nothing."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from maep.ablation.grid.points import Point
from maep.ablation.running.point_records import PointState, is_finished
from maep.ablation.running.reuse import reuse_between
from maep.ablation.running.rungs import PointStatus, Stop, halving_state, status_of
from maep.ablation.study import Study
from maep.launch.monitor.screen import screen
from maep.launch.submission.read_by_jobs import check_what_is_read
from maep.pipeline.stages import stages_of


def print_preview(study: Study) -> None:
    """Print every point with its state and directory, how much work all of them share, and what they would not find."""
    sweep, stopped = study.sweep, halving_state(study.sweep, study.points).stopped
    states = [_status(point, stopped) for point in study.points]
    finished = sum(status.state == PointState.FINISHED for status in states)
    remaining = len(states) - finished - len(stopped)
    print(f"{sweep.file}, scale {sweep.scale}: {len(states)} points, {finished} finished, {remaining} to run")
    screen().print(_points_table(study, states), _reuse_table(study), highlight=False)
    left = [point for point, status in zip(study.points, states, strict=True) if status.state != PointState.FINISHED]
    check_what_is_read([(point.settings, stages_of(point.settings)) for point in left], on_paper=True)


def _points_table(study: Study, states: Sequence[PointStatus]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for name in ("point", *(axis.title for axis in study.sweep.axes), "seed", "state", "run directory"):
        table.add_column(name, overflow="fold")
    for number, (point, status) in enumerate(zip(study.points, states, strict=True)):
        table.add_row(str(number), *point.names, str(point.seed), str(status), str(point.directory))
    return table


def _reuse_table(study: Study) -> Table:
    table = Table(title="work of all points together", title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "wanted", "different: made once"):
        table.add_column(name)
    for work in reuse_between(study.points):
        table.add_row(work.kind, str(work.requests), str(work.distinct))
    return table


def _status(point: Point, stopped: Mapping[str, Stop]) -> PointStatus:
    """As it is now: a point whose files were altered or removed since it was finished is not."""
    if is_finished(point):
        return PointStatus(PointState.FINISHED)
    status = status_of(point, stopped)
    return PointStatus(PointState.WAITING) if status.state == PointState.FINISHED else status
