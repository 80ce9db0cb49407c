"""Run the points of a sweep; each is an ordinary run of the whole pipeline.

Any number of workers, on any nodes, may run the same sweep: each takes the next point, or the next few that have
their pretraining in common, that no living one has (maep.storage.claims), so that points of a dead worker go to the
others, which go on from its checkpoints.
"""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from maep.ablation.running.overhead import Spent
from maep.ablation.running.point_records import (
    PointRecord,
    attacked_files,
    attacks_since,
    has_failed,
    is_finished,
    read_record,
)
from maep.ablation.running.pretrained import by_pretraining, sharing
from maep.ablation.running.rungs import judge_rung, reading_at, standing
from maep.ablation.spec.halving import Halving
from maep.ablation.spec.points import Point
from maep.ablation.spec.sweep import Sweep
from maep.pipeline.stages import Launcher, run_pipeline
from maep.runtime.console import say
from maep.runtime.errors import NonFiniteLoss, Paused, PeerLost, Stopped, UserError, fail
from maep.storage.atomic import atomic_file
from maep.storage.claims import Claims

TRACEBACK = "failure.txt"
LOOK_AGAIN = 1.0  # seconds


def run_points(sweep: Sweep, points: Sequence[Point], launch: Launcher, spent: Spent, only: Sequence[int] = ()) -> bool:
    """Run what is not finished; a point that fails is recorded with its reason and the others go on.

    With `sweep.halving` points that do badly at a rung are left there. spent: where this worker's time is written
    down. only: indices of the points to run, all if empty. Returns whether none of them has failed, once every point
    is finished, stopped, failed or in the hands of another living worker.
    Raises Stopped or KeyboardInterrupt when the sweep itself is stopped; the same call goes on.
    """
    chosen = [points[index] for index in only] or list(points)
    directory, timeout = chosen[0].directory.parent / ".claims", chosen[0].settings.compute.claim_timeout
    with Claims(directory, timeout) as claims:
        worker = _Worker(sweep, chosen, launch, spent, claims)
        if all(worker.climb(step) for step in (sweep.halving.at if sweep.halving else ())):
            worker.take(standing(sweep, chosen, worker.began).left)
    return not any(has_failed(point) for point in chosen)


@dataclass
class _Worker:
    """One of those that share the points of a sweep."""

    sweep: Sweep
    points: list[Point]
    launch: Launcher
    spent: Spent
    claims: Claims
    began: float = field(default_factory=time.time)
    told: set[str] = field(default_factory=set)

    def climb(self, step: int) -> bool:
        """Bring points to a rung until it is decided who goes on; False if others see to all that is left of it."""
        worked = False
        while (now := standing(self.sweep, self.points, self.began)).waits_at == step:
            worked = self.take(now.left, step) or worked
            if not worked:
                return False
            time.sleep(LOOK_AGAIN)
        for point in self.points:
            if point.identity in now.stopped and point.identity not in self.told:
                self.told.add(point.identity)
                say(f"{point.label}: {now.stopped[point.identity]}")
        return True

    def take(self, points: Sequence[Point], until: int | None = None) -> bool:
        """Run those that nobody else has, to their end or to the rung at step `until`; whether there was one."""
        units, worked = by_pretraining(points), False
        for unit in self.claims.shared(list(units), lambda unit: not self._left(units[unit], until)):
            for point in self._left(units[unit], until):
                say(f"point {self.points.index(point) + 1} of {len(self.points)}: {point.label} ({point.directory})")
                with self.spent.on(point):
                    run_point(self.sweep, point, self.launch, until)
                worked = True
        return worked

    def _left(self, points: Sequence[Point], until: int | None) -> list[Point]:
        """Those of one pretraining that are to be run."""
        return [point for point in points if not self._is_done(point, until)]

    def _is_done(self, point: Point, until: int | None) -> bool:
        """Whether there is nothing to do: it is there, or some worker has seen it fail since this one began."""
        if has_failed(point, self.began):
            return True
        if until is not None and reading_at(self.sweep, point, until) is not None:
            return True
        if not is_finished(point):
            return False
        record = read_record(point)
        if record.state != "finished":
            PointRecord("finished", seconds=record.seconds, attacked=record.attacked).write(point)
        if point.identity not in self.told:
            self.told.add(point.identity)
            say(f"{point.label}: finished ({point.directory})")
        return True


def run_point(sweep: Sweep, point: Point, launch: Launcher, until: int | None = None) -> None:
    """Run one point to its end, or on from where it was, and write down how that went.

    until: the step of a rung: pretrain no further, and judge what there is.
    """
    record, before, started = read_record(point), attacked_files(point.settings), time.time()
    spent, attacked = record.seconds, record.attacked
    record.state, record.reason = "running", ""
    record.write(point)
    state, reason = "interrupted", ""
    try:
        state = _run_pipeline(sweep, point, launch, until)
    except (Stopped, PeerLost):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a point dies of, the others go on, and it is written down
        state, reason = "failed", _reason(error)
        _write_traceback(point)
        say(f"{point.label}: failed: {reason} ({point.directory / TRACEBACK})")
    finally:
        record.state, record.reason, record.seconds = state, reason, spent + time.time() - started
        made = attacks_since(before, point.settings)
        record.attacked = {kind: {**attacked[kind], **made[kind]} for kind in made}
        record.write(point)


def _run_pipeline(sweep: Sweep, point: Point, launch: Launcher, until: int | None) -> str:
    """Run all stages, or as far as the rung; how the point stands then."""
    pretrain = replace(point.settings.pretrain, pause_at=until)
    try:
        run_pipeline(replace(point.settings, pretrain=pretrain), "all", sharing(launch))
    except Paused:
        assert until is not None
        judge_rung(sweep, point, until)
        return "paused"
    return "finished"


def _reason(error: Exception) -> str:
    """On one line; an error of ours keeps its kind."""
    told = " ".join(str(error).split())
    return told if isinstance(error, UserError | NonFiniteLoss) else f"{type(error).__name__}: {told}"


def _write_traceback(point: Point) -> None:
    with atomic_file(point.directory / TRACEBACK) as temporary:
        temporary.write_text(traceback.format_exc())


def parse_only(text: str, count: int, halving: Halving | None = None) -> list[int]:
    """`0,3-5` as indices of points. Raises UserError for what is no index below `count`, and where points compete."""
    chosen: list[int] = []
    if text and halving:
        fail(f"--only {text}: this sweep compares its points (halving), so all of them run; leave it out")
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit() and int(first) <= int(last or first) < count):
            fail(f"--only {text}: expected points such as 0,3-5, below {count}")
        chosen += range(int(first), int(last or first) + 1)
    return chosen
