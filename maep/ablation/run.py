"""Run the points of a sweep; each is an ordinary run of the whole pipeline.

Any number of workers, on any nodes, may run the same sweep: each takes the next point that no living one has
(maep.claims), so that points of a dead worker go to the others, which go on from its checkpoints.
"""

import time
import traceback
from collections.abc import Sequence

from maep.ablation.points import Point
from maep.ablation.records import RECORD, PointRecord, attacked_files, attacks_since, is_finished, read_record
from maep.ablation.spent import Spent
from maep.claims import Claims
from maep.errors import UserError, fail
from maep.files import atomic_file
from maep.progress import say
from maep.stages import Launcher, run_pipeline
from maep.training.distributed import PeerLost
from maep.training.loop import NonFiniteLoss
from maep.training.signals import Stopped

TRACEBACK = "failure.txt"


def run_points(points: Sequence[Point], launch: Launcher, spent: Spent, only: Sequence[int] = ()) -> bool:
    """Run what is not finished; a point that fails is recorded with its reason and the others go on.

    spent: where this worker's time is written down. only: indices of the points to run, all if empty. Returns
    whether none of them has failed, once every point is finished, failed or in the hands of another living worker.
    Raises Stopped or KeyboardInterrupt when the sweep itself is stopped; the same call goes on.
    """
    chosen = [points[index] for index in only] or list(points)
    units = {point.identity[:16]: point for point in chosen}
    began, told = time.time(), set[str]()

    def is_done(unit: str) -> bool:
        return _is_done(units[unit], began, told)

    directory, timeout = chosen[0].directory.parent / ".claims", chosen[0].settings.compute.claim_timeout
    with Claims(directory, timeout) as claims:
        for unit in claims.shared(list(units), is_done):
            point = units[unit]
            say(f"point {chosen.index(point) + 1} of {len(chosen)}: {point.label} ({point.directory})")
            with spent.on(point):
                run_point(point, launch)
    return all(read_record(point).state != "failed" for point in chosen)


def _is_done(point: Point, began: float, told: set[str]) -> bool:
    """Whether there is nothing to do: it is finished, or some worker has seen it fail since `began`."""
    record = read_record(point)
    if record.state == "failed":
        return (point.directory / RECORD).stat().st_mtime >= began
    if not is_finished(point):
        return False
    if record.state != "finished":
        PointRecord("finished", seconds=record.seconds, attacked=record.attacked).write(point)
    if point.identity not in told:
        told.add(point.identity)
        say(f"{point.label}: finished ({point.directory})")
    return True


def run_point(point: Point, launch: Launcher) -> None:
    """Run one point to its end, or on from where it was stopped, and write down how that went."""
    record, before, started = read_record(point), attacked_files(point.settings), time.time()
    spent, attacked = record.seconds, record.attacked
    record.state, record.reason = "running", ""
    record.write(point)
    state, reason = "stopped", ""
    try:
        run_pipeline(point.settings, "all", launch)
        state = "finished"
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


def _reason(error: Exception) -> str:
    """On one line; an error of ours keeps its kind."""
    told = " ".join(str(error).split())
    return told if isinstance(error, UserError | NonFiniteLoss) else f"{type(error).__name__}: {told}"


def _write_traceback(point: Point) -> None:
    with atomic_file(point.directory / TRACEBACK) as temporary:
        temporary.write_text(traceback.format_exc())


def parse_only(text: str, count: int) -> list[int]:
    """`0,3-5` as indices of points. Raises UserError for what is no index below `count`."""
    chosen: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit() and int(first) <= int(last or first) < count):
            fail(f"--only {text}: expected points such as 0,3-5, below {count}")
        chosen += range(int(first), int(last or first) + 1)
    return chosen
