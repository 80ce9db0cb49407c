"""What went wrong in a job: the rank that failed, not those that lost it, on a few lines with the path of the whole."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from maep.launch.cluster.job_records import JobRecord, exit_folders, stage_folder
from maep.launch.cluster.slurm_client import JobState
from maep.launch.job.attempts import Attempt, Outcome, RankExit, read_attempts, read_exits

# What fits on a screen below the table; the path of the whole stands beside it.
FRAMES = 2
SHOWN = 3  # ranks
LONGEST = 300  # characters of an error
LOG_NOT_OPENED = "0:53"  # Slurm's own exit code of a job whose output file could not be opened
KILLED = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<rank>\S+): (?P<how>Killed|.*signal.*|Out Of Memory.*)$")
ATTEMPT = re.compile(r"job \S+, (?:attempt|life) (?P<number>\d+): ")  # a line of the batch script; `life` in format 0
FRAME = re.compile(r'^  File "')


def failures_of(
    run: Path, record: JobRecord, states: Sequence[JobState], damaged: Callable[[str], object]
) -> list[str]:
    """The newest bad end of each job, or worker of an array.

    damaged: called with one line for each record that cannot be read.
    """
    failures = []
    for folder in exit_folders(run, record):
        bad = (Outcome.CRASHED, Outcome.FINAL)
        attempts = [attempt for attempt in read_attempts(folder, damaged) if attempt.kind in bad]
        if attempts:
            log = stage_folder(run, record.stage) / f"{folder.name}_0_log.out"
            lines = _failures_of_attempt(folder, attempts[-1], log, damaged)
            failures += [f"{record.stage}: {line}" for line in lines]
    for state in states:
        if state.exit_code == LOG_NOT_OPENED:
            failures.append(
                f"{record.stage}: job {state.job} ended before it began: node {state.nodes} cannot open its log; is "
                f"{run} visible there?"
            )
    return failures


def _failures_of_attempt(folder: Path, attempt: Attempt, log: Path, damaged: Callable[[str], object]) -> list[str]:
    """Ranks that failed by themselves; else one that was killed; else those that lost a peer."""
    title = f"job {folder.name}, attempt {attempt.attempt}"
    exits = read_exits(folder, attempt.attempt, damaged)
    bad = sorted((pair for pair in exits if pair[1].kind != Outcome.STOPPED), key=_written)
    causes = [pair for pair in bad if pair[1].kind != Outcome.PEER_LOST]
    killed = first_killed(log, attempt.attempt)
    if not causes and killed:
        return [f"{title}: {killed}\n  the whole: {log}"]
    if not bad:
        return [f"{title}: {attempt.reason}\n  the whole: {log}"]
    return [f"{title}, {_failure_of_rank(path, record)}" for path, record in (causes or bad)[:SHOWN]]


def _written(pair: tuple[Path, RankExit]) -> int:
    """When an exit was written, on the clock of the disk, as those of nodes differ. The first exit is the cause."""
    return pair[0].stat().st_mtime_ns


def _failure_of_rank(path: Path, record: RankExit) -> str:
    error = record.error if len(record.error) <= LONGEST else record.error[:LONGEST] + " …"
    lines = [f"rank {record.rank} on {record.node}: {error}", *shorten(record.traceback)]
    return "\n".join([*lines, f"  the whole: {path}"])


def first_killed(log: Path, attempt: int) -> str:
    """The first process that srun saw killed in an attempt, as `rank 3 on n4 was killed`; "" if none was."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    ends = {int(match["number"]): i for i, line in enumerate(lines) if (match := ATTEMPT.match(line))}
    if attempt not in ends:
        return ""
    begin = max((i for number, i in ends.items() if number < attempt), default=0)
    for line in lines[begin : ends[attempt]]:
        if match := KILLED.match(line):
            return f"rank {match['rank']} on {match['node']} was killed ({match['how']})"
    return ""


def shorten(traceback: str, frames: int = FRAMES) -> list[str]:
    """The innermost frames of the run's own code and the innermost of all, without what Python drew below them."""
    lines = traceback.splitlines()
    starts = [i for i, line in enumerate(lines) if FRAME.match(line)]
    of_this_code = [i for i in starts if "/code/" in lines[i]][-frames:]
    innermost = sorted({*of_this_code, *starts[-1:]})
    return [line for i in innermost for line in lines[i : i + 2]]
