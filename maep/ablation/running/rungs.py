"""The rungs of successive halving: what each point reads there, and who goes on.

    point/rungs/000300/    a run directory that judges the point's checkpoint of step 300; its report holds the reading

Who goes on is a function of these readings alone: every worker finds the same answer at any time, and nobody has to
write it down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

from maep.ablation.running.point_records import has_failed, is_finished, read_record
from maep.ablation.running.row_selector import budget, row_of
from maep.ablation.spec.points import Point
from maep.ablation.spec.sweep import Sweep
from maep.config.schema import Settings
from maep.pipeline.stages import run_pipeline
from maep.runtime.errors import fail
from maep.training.checkpointing.directory import newest_whole


@dataclass(frozen=True)
class Stop:
    """Where a point was stopped: the step, and its reading there."""

    step: int
    by: str
    reading: float

    def __str__(self) -> str:
        return f"stopped at step {self.step} ({self.by.replace('_', ' ')} {self.reading:.2f} there)"


@dataclass
class Standing:
    """left: points that go on; stopped: `{identity: where}`; waits_at: the rung not decided yet, None at the end."""

    left: list[Point]
    stopped: dict[str, Stop] = field(default_factory=dict)
    waits_at: int | None = None


def rung_directory(point: Point, step: int) -> Path:
    """Where the point is judged at a rung."""
    return point.directory / "rungs" / f"{step:06d}"


def rung_settings(sweep: Sweep, point: Point, step: int) -> Settings:
    """The settings that judge a point's newest checkpoint by the sweep's first reading."""
    settings, reading = point.settings, next(iter(sweep.readings.values()))
    checkpoint = newest_whole(point.directory / "checkpoints")
    if checkpoint is None:
        fail(f"{point.directory}: no checkpoint of step {step} to judge")
    evaluation = replace(
        settings.evaluation, purifier=str(checkpoint), purifiers="both", threat_models=[reading["threat_model"]],
        attacks=[reading["attack"]], eps=[budget(reading["eps"])], check_images=1, figure_images=1,
    )  # fmt: skip
    run = replace(settings.run, name=f"{settings.run.name}-step-{step}", dir=str(rung_directory(point, step)))
    return replace(settings, run=run, evaluation=evaluation)


def judge_rung(sweep: Sweep, point: Point, step: int) -> None:
    """Evaluate a paused point; its reading is there afterwards."""
    run_pipeline(rung_settings(sweep, point, step), "all", _nothing_to_train)


def _nothing_to_train(name: str, _settings: Settings) -> None:
    raise RuntimeError(f"{name}: judging a checkpoint trains nothing")


def reading_at(sweep: Sweep, point: Point, step: int) -> float | None:
    """What a point reached at a rung; None if it has not been judged there."""
    report = rung_directory(point, step) / "report.json"
    if sweep.halving is None or not report.is_file():
        return None
    row = row_of(report, {**next(iter(sweep.readings.values())), "purifier": "pretrained"})
    if row is None:
        fail(f"{report}: does not hold the sweep's first reading; remove it, and the same command makes it again")
    return float(row[sweep.halving.by])


def standing(sweep: Sweep, points: Sequence[Point], since: float = 0.0) -> Standing:
    """Rung by rung, who is left and who is stopped, as far as all readings are there.

    since: only what failed after that time has failed; the rest is still to report. A failed point is out. One that
    was finished without having been at a rung, by another sweep or command, goes on and takes nobody's place.
    """
    now = Standing(list(points))
    if sweep.halving is None:
        return now
    for step in sweep.halving.at:
        rivals: list[tuple[float, int, Point]] = []
        for place, point in enumerate(now.left):
            reading = reading_at(sweep, point, step)
            if reading is not None:
                rivals.append((-reading, place, point))
            elif not has_failed(point, since) and not is_finished(point):
                now.waits_at = step
                return now
        for value, _, point in sorted(rivals)[ceil(sweep.halving.keep * len(rivals)) :]:
            now.stopped[point.identity] = Stop(step, sweep.halving.by, -value)
        now.left = [point for point in now.left if point.identity not in now.stopped]
    return now


def state_of(point: Point, stopped: dict[str, Stop]) -> str:
    """How a point stands, in words."""
    state = read_record(point).state
    return str(stopped[point.identity]) if point.identity in stopped and state != "finished" else state


def stop_json(stop: Stop | None) -> dict[str, Any] | None:
    """A stop as ablation.json has it."""
    return None if stop is None else {"step": stop.step, "by": stop.by, "reading": stop.reading}
