"""Run the points of a sweep; each is an ordinary run of the whole pipeline.

Any number of workers, on any nodes, may run the same sweep: each takes the next point, or the next few that have
their pretraining in common, that no living one has (maep.storage.claims), so that points of a dead worker go to the
others, which go on from its checkpoints.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from maep.ablation.grid.halving import Halving
from maep.ablation.grid.points import Point
from maep.ablation.grid.sweep import Sweep
from maep.ablation.running.moved_images import take_over_point
from maep.ablation.running.overhead import OverheadTimer
from maep.ablation.running.point_records import (
    PointRecord,
    PointState,
    attacked_files,
    failures_of,
    has_failed,
    is_finished,
    read_record,
    write_record,
)
from maep.ablation.running.pretrained import by_pretraining, reusing_pretraining
from maep.ablation.running.rungs import evaluate_rung, halving_state, rung_value
from maep.pipeline.execution import run_pipeline
from maep.pipeline.stages import Launcher
from maep.runtime.console import say
from maep.runtime.errors import (
    NonFiniteLoss,
    Paused,
    PeerLost,
    ProcessFailed,
    Stopped,
    UserError,
    fail,
    shown_traceback,
)
from maep.storage.atomic import atomic_file
from maep.storage.claims import Claims

TRACEBACK = "failure.txt"
# Seconds between two looks at what others do at a rung: little beside a point's minutes, and no load on the disk.
LOOK_AGAIN = 1.0


def run_points(
    sweep: Sweep, points: Sequence[Point], launch: Launcher, overhead: OverheadTimer, only: Sequence[int] = ()
) -> bool:
    """Run what is not finished; a point that fails is recorded with its reason and the others go on.

    With `sweep.halving` points that do badly at a rung are stopped there. overhead: where this worker's time is
    written down. only: indices of the points to run, all if empty. Returns whether none of them has failed, once every
    point is finished, stopped, failed or in the hands of another living worker.
    Raises Stopped or KeyboardInterrupt when the sweep itself is stopped; the same call goes on.
    """
    selection = [points[index] for index in only] or list(points)
    directory, timeout = selection[0].directory.parent / ".claims", selection[0].settings.compute.claim_timeout
    with Claims(directory, timeout) as claims:
        worker = _Worker(sweep, selection, launch, overhead, claims, failures_of(selection))
        if all(worker.climb(step) for step in (sweep.halving.at if sweep.halving else ())):
            worker.work_on(halving_state(sweep, selection, worker.before).active)
    return not any(has_failed(point) for point in selection)


@dataclass
class _Worker:
    """One of those that share the points of a sweep.

    before: `failures_of` the points when it began. announced: identities of points whose end it has reported.
    """

    sweep: Sweep
    points: list[Point]
    launch: Launcher
    overhead: OverheadTimer
    claims: Claims
    before: Mapping[str, int]
    announced: set[str] = field(default_factory=set)

    def climb(self, step: int) -> bool:
        """Bring points to a rung until it is decided who goes on; False if others see to all that remains of it."""
        worked = False
        while (state := halving_state(self.sweep, self.points, self.before)).pending_rung == step:
            worked = self.work_on(state.active, step) or worked
            if not worked:
                return False
            time.sleep(LOOK_AGAIN)
        for point in self.points:
            if point.identity in state.stopped:
                self._announce(point, str(state.stopped[point.identity]))
        return True

    def work_on(self, points: Sequence[Point], until: int | None = None) -> bool:
        """Run those that nobody else has, to their end or to the rung at step `until`; whether there was one."""
        groups, worked = by_pretraining(points), False
        for key in self.claims.shared(list(groups), lambda key: not self._unfinished(groups[key], until)):
            for point in self._unfinished(groups[key], until):
                say(f"point {self.points.index(point) + 1} of {len(self.points)}: {point.label} ({point.directory})")
                with self.overhead.on(point):
                    run_point(self.sweep, point, self.launch, until)
                worked = True
        return worked

    def _unfinished(self, points: Sequence[Point], until: int | None) -> list[Point]:
        return [point for point in points if not self._is_done(point, until)]

    def _is_done(self, point: Point, until: int | None) -> bool:
        """Whether there is nothing to do: it is finished, or a worker has seen it fail since this one began."""
        if has_failed(point, self.before):
            return True
        if until is not None and rung_value(self.sweep, point, until) is not None:
            return True
        if not is_finished(point):
            return False
        record = read_record(point)
        if record.state != PointState.FINISHED:  # its last worker died between the report and this record
            write_record(point, replace(record, state=PointState.FINISHED, reason=""))
        self._announce(point, f"finished ({point.directory})")
        return True

    def _announce(self, point: Point, text: str) -> None:
        """Say it, once a point."""
        if point.identity not in self.announced:
            self.announced.add(point.identity)
            say(f"{point.label}: {text}")


def run_point(sweep: Sweep, point: Point, launch: Launcher, until: int | None = None) -> None:
    """Run one point to its end, or on from where it was, and write down how that went.

    until: the step of a rung: pretrain no further, and evaluate what there is.
    Raises Stopped and PeerLost, which end the sweep; of anything else only this point dies.
    """
    record, files_before, start = read_record(point), attacked_files(point.settings), time.monotonic()
    write_record(point, replace(record, state=PointState.RUNNING, reason=""))
    state, reason = PointState.INTERRUPTED, ""
    try:
        state = _run_pipeline(sweep, point, launch, until)
    except (Stopped, PeerLost):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a point dies of, the others go on, and it is written down
        state, reason = PointState.FAILED, _one_line(error)
        _write_traceback(point)
        say(f"{point.label}: failed: {reason} ({point.directory / TRACEBACK})")
    finally:
        attacked = record.attacked | attacked_files(point.settings).since(files_before)
        seconds, failures = record.seconds + time.monotonic() - start, record.failures + (state == PointState.FAILED)
        write_record(point, PointRecord(state, reason, seconds, attacked, failures))


def _run_pipeline(sweep: Sweep, point: Point, launch: Launcher, until: int | None) -> PointState:
    """Run all stages, or as far as the rung; how the point stands then."""
    pretrain = replace(point.settings.pretrain, pause_at=until)
    take_over_point(point.settings, launch)
    try:
        run_pipeline(replace(point.settings, pretrain=pretrain), "all", reusing_pretraining(launch))
    except Paused:
        assert until is not None
        evaluate_rung(sweep, point, until)
        return PointState.PAUSED
    return PointState.FINISHED


def _one_line(error: Exception) -> str:
    """Of an error that is not ours its kind, too."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError | NonFiniteLoss | ProcessFailed) else f"{type(error).__name__}: {text}"


def _write_traceback(point: Point) -> None:
    with atomic_file(point.directory / TRACEBACK) as temporary:
        temporary.write_text(shown_traceback(), encoding="utf-8")


def parse_only(text: str, count: int, halving: Halving | None = None) -> list[int]:
    """`0,3-5` as indices of points. Raises UserError for what is no index below `count`, and where points compete."""
    indices: list[int] = []
    if text and halving:
        fail(f"--only {text}: this sweep compares its points (halving), so all of them run; leave it out")
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit() and int(first) <= int(last or first) < count):
            fail(f"--only {text}: expected points such as 0,3-5, below {count}")
        indices += range(int(first), int(last or first) + 1)
    return indices
