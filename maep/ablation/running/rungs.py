"""The rungs of successive halving: what each point reaches there, and who goes on.

    point/rungs/000300/    a run directory that evaluates the point's checkpoint of step 300

Who goes on is a function of these reports alone: every worker finds the same answer at any time, and nobody has to
write it down.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

from maep.ablation.grid.halving import Halving
from maep.ablation.grid.points import Point
from maep.ablation.grid.row_selector import WORST_CASE, row_of
from maep.ablation.grid.sweep import Sweep
from maep.ablation.running.point_records import PointState, has_failed, is_finished, read_record
from maep.config.schema import Settings
from maep.pipeline.execution import run_pipeline
from maep.runtime.errors import fail
from maep.training.checkpointing.directory import newest_whole


@dataclass(frozen=True)
class Stop:
    """Where a point was stopped. step: of the rung; by: the value that decides; reading: what the point had of it."""

    step: int
    by: str
    reading: float

    @property
    def rung(self) -> str:
        """Where, in words."""
        return f"stopped at step {self.step}"

    def __str__(self) -> str:
        return f"{self.rung} ({self.by.replace('_', ' ')} {self.reading:.2f} there)"


@dataclass(frozen=True)
class HalvingState:
    """How far the rungs have sorted the points.

    active: points that go on, in order; stopped: `{identity: where}`; pending_rung: the step of the first rung that is
    not decided yet, None at the end.
    """

    active: tuple[Point, ...]
    stopped: Mapping[str, Stop] = field(default_factory=dict)
    pending_rung: int | None = None


@dataclass(frozen=True)
class PointStatus:
    """How a point stands in a sweep. stop: where the sweep stopped it; None if it did not, or another finished it."""

    state: PointState
    stop: Stop | None = None

    @property
    def kind(self) -> str:
        """In words that all points have which stand alike."""
        return self.stop.rung if self.stop else str(self.state)

    def __str__(self) -> str:
        return str(self.stop or self.state)


def rung_directory(point: Point, step: int) -> Path:
    """Where the point is evaluated at a rung."""
    return point.directory / "rungs" / f"{step:06d}"


def rung_settings(sweep: Sweep, point: Point, step: int) -> Settings:
    """The settings that evaluate a point's newest checkpoint by the sweep's first row selector.

    Raises UserError if there is no checkpoint.
    """
    settings, selector = point.settings, sweep.first_selector
    checkpoint = newest_whole(point.directory / "checkpoints")
    if checkpoint is None:
        fail(f"{point.directory}: no checkpoint of step {step} to judge")
    # One number is needed here; a report's checks and pictures are for finished purifiers, so one image each.
    evaluation = replace(
        settings.evaluation, purifier=str(checkpoint), purifiers="both", eps=[selector.budget], check_images=1,
        figure_images=1,
    )  # fmt: skip
    if selector.threat_model != WORST_CASE:  # which is of all attackers of the point
        evaluation = replace(evaluation, threat_models=[selector.threat_model], attacks=[selector.attack])
    run = replace(settings.run, name=f"{settings.run.name}-step-{step}", dir=str(rung_directory(point, step)))
    return replace(settings, run=run, evaluation=evaluation)


def evaluate_rung(sweep: Sweep, point: Point, step: int) -> None:
    """Evaluate a paused point; `rung_value` has its result afterwards."""
    run_pipeline(rung_settings(sweep, point, step), "all", _nothing_to_train)


def _nothing_to_train(name: str, _settings: Settings) -> None:
    raise RuntimeError(f"{name}: evaluating a checkpoint trains nothing")


def rung_value(sweep: Sweep, point: Point, step: int) -> float | None:
    """What a point reached at a rung, of the value that decides; None if it has not been evaluated there.

    Raises UserError if the report there is not of the sweep's first row selector.
    """
    report = rung_directory(point, step) / "report.json"
    if sweep.halving is None or not report.is_file():
        return None
    row = row_of(report, replace(sweep.first_selector, purifier="pretrained"))
    if row is None:
        fail(f"{report}: does not hold the sweep's first reading; remove it, and the same command makes it again")
    return float(row[sweep.halving.by])


def halving_state(sweep: Sweep, points: Sequence[Point], before: Mapping[str, int] | None = None) -> HalvingState:
    """Rung by rung, who goes on and who is stopped, as far as every point has been evaluated.

    before: only what failed after that look at `failures_of` has failed; other points are still to report. A failed
    point is out. One that was finished without having been at a rung, by another sweep or command, goes on and takes
    nobody's place.
    """
    active, stopped = tuple(points), dict[str, Stop]()
    for step in sweep.halving.at if sweep.halving else ():
        values = {point.identity: rung_value(sweep, point, step) for point in active}
        if any(values[point.identity] is None and _will_report(point, before) for point in active):
            return HalvingState(active, stopped, step)
        assert sweep.halving is not None
        reports = {identity: value for identity, value in values.items() if value is not None}
        stopped |= _stops(reports, step, sweep.halving)
        active = tuple(point for point in active if point.identity not in stopped)
    return HalvingState(active, stopped)


def _will_report(point: Point, before: Mapping[str, int] | None) -> bool:
    return not has_failed(point, before) and not is_finished(point)


def _stops(values: Mapping[str, float], step: int, halving: Halving) -> dict[str, Stop]:
    """Those of a rung that do not go on, by identity. values: in the points' order, which ranks equal ones."""
    ranking = sorted(values, key=lambda identity: -values[identity])
    worst = ranking[ceil(halving.keep * len(ranking)) :]
    return {identity: Stop(step, halving.by, values[identity]) for identity in worst}


def status_of(point: Point, stopped: Mapping[str, Stop]) -> PointStatus:
    """How a point stands. stopped: as `halving_state` has it."""
    state = read_record(point).state
    return PointStatus(state, None if state == PointState.FINISHED else stopped.get(point.identity))
