"""A sweep on paper: its points, what they share, and what is finished already. Runs, submits and writes nothing."""

from collections import Counter

from rich.box import SIMPLE_HEAD
from rich.table import Table

from maep.ablation.running.point_records import is_finished
from maep.ablation.running.reuse import shared_work
from maep.ablation.running.rungs import Stop, standing, state_of
from maep.ablation.spec.points import Point
from maep.ablation.study import Study
from maep.launch.monitor.status import screen

FINISHED = "finished"


def print_preview(study: Study) -> None:
    """Print every point with its state and directory, then how much work is shared between all of them."""
    sweep = study.sweep
    stopped = standing(sweep, study.points).stopped
    states = [_state(point, stopped) for point in study.points]
    counts = Counter(states)
    left = len(states) - counts[FINISHED] - len(stopped)
    title = f"{sweep.file}, scale {sweep.scale}: {len(states)} points, {counts[FINISHED]} finished, {left} to run"
    table = Table(box=SIMPLE_HEAD)
    for name in ("point", *(axis.title for axis in sweep.axes), "seed", "state", "run directory"):
        table.add_column(name, overflow="fold")
    for number, (point, state) in enumerate(zip(study.points, states, strict=True)):
        table.add_row(str(number), *point.names, str(point.seed), state, str(point.directory))
    shared = Table(title="work of all points together", title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "wanted", "different: made once"):
        shared.add_column(name)
    for work in shared_work(study.points):
        shared.add_row(work.kind, str(work.wanted), str(work.different))
    print(title)
    screen().print(table, shared, highlight=False)


def _state(point: Point, stopped: dict[str, Stop]) -> str:
    """As it is now: a point whose files were altered or removed since it was finished is not."""
    if is_finished(point):
        return FINISHED
    state = state_of(point, stopped)
    return "waiting" if state == FINISHED else state
