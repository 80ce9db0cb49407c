"""Run the points of a sweep, one after the other; each is an ordinary run of the whole pipeline."""

import time
import traceback
from collections.abc import Sequence

from maep.ablation.points import Point
from maep.ablation.records import PointRecord, attacked_files, attacks_since, is_finished, read_record
from maep.errors import UserError, fail
from maep.files import atomic_file
from maep.progress import say
from maep.stages import Launcher, run_pipeline
from maep.training.distributed import PeerLost
from maep.training.loop import NonFiniteLoss
from maep.training.signals import Stopped

TRACEBACK = "failure.txt"


def run_points(points: Sequence[Point], launch: Launcher, only: Sequence[int] = ()) -> bool:
    """Run what is not finished; a point that fails is recorded with its reason and the others go on.

    only: indices of the points to run, all if empty. Returns whether none of them failed.
    Raises Stopped or KeyboardInterrupt when the sweep itself is stopped; the same call goes on.
    """
    chosen = [points[index] for index in only] or list(points)
    good = True
    for number, point in enumerate(chosen, 1):
        if is_finished(point):
            say(f"point {number} of {len(chosen)}: {point.label}: finished before ({point.directory})")
            if read_record(point).state != "finished":
                PointRecord(state="finished").write(point)
            continue
        say(f"point {number} of {len(chosen)}: {point.label} ({point.directory})")
        good = run_point(point, launch) and good
    return good


def run_point(point: Point, launch: Launcher) -> bool:
    """Run one point to its end, or on from where it was stopped. Returns whether it went well."""
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
    return state == "finished"


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
