"""What a run is doing: state from Slurm, progress and errors from the run directory."""

import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from maep.launch.cluster.job_records import JobRecord, read_records, stage_folder
from maep.launch.cluster.jobs import ARRAY, KINDS
from maep.launch.cluster.slurm_client import JobState, job_states
from maep.launch.job.attempts import read_ends, read_lives
from maep.launch.monitor.stage_progress import Progress, progress_of, read_settings
from maep.storage.atomic import read_json

WIDTH = 140  # where there is no terminal
FRAMES = 2
POLL = 2.0
SHOWN = 3
LONGEST = 300
LOG_NOT_OPENED = "0:53"
KILLED = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<rank>\S+): (?P<how>Killed|.*signal.*|Out Of Memory.*)$")
FRAME = re.compile(r'^  File "')


@dataclass(frozen=True)
class StageStatus:
    """A stage's newest job: what was submitted, how it stands, how far its work is."""

    stage: str
    finished: bool
    record: JobRecord | None
    states: list[JobState]
    progress: Progress | None
    restarts: str
    errors: list[str]

    @property
    def state(self) -> str:
        """One word a state; workers of an array counted by state."""
        if self.record is None:
            return "finished" if self.finished else "not submitted"
        if not self.states:
            return "finished" if self.finished else "unknown to Slurm"
        return _counted(self.states)

    @property
    def ended(self) -> bool:
        """Whether Slurm will do nothing more for it."""
        return all(state.ended for state in self.states)

    @property
    def failed(self) -> bool:
        """Whether it ended, and not well."""
        return self.ended and any(state.state != "COMPLETED" for state in self.states)


def _counted(states: Sequence[JobState]) -> str:
    """One state, or how many workers are in each."""
    counts = Counter(state.state for state in states)
    return ", ".join(f"{n} {state}" if len(states) > 1 else state for state, n in counts.items())


def read_status(run: Path) -> list[StageStatus]:
    """The stages in order, with their newest job each."""
    newest = {record.stage: record for record in read_records(run)}
    states = job_states([record.job for record in newest.values()])
    return [_stage_status(run, stage, newest.get(stage), states) for stage in KINDS]


def _stage_status(run: Path, stage: str, record: JobRecord | None, states: dict[str, list[JobState]]) -> StageStatus:
    known = states.get(record.job, []) if record else []
    begun = any(state.seconds or state.restarts for state in known)
    progress = progress_of(stage, read_settings(Path(record.config))) if record and begun else None
    return StageStatus(stage, _finished(run, stage), record, known, progress, _restarts(run, record, known),
                       _errors(run, record, known))  # fmt: skip


def _finished(run: Path, stage: str) -> bool:
    """Whether the stage's own record says so, and what it was made from is still what is there."""
    books = {path.stem: read_json(path) for path in (run / "stages").glob("*.json")}
    mine = books.get(stage)
    if mine is None or not mine["finished"]:
        return False
    return all(books.get(name, {}).get("identity") == identity for name, identity in mine["inputs"].items())


def _ends(run: Path, record: JobRecord) -> list[Path]:
    """The directories where a job's ends, or its workers', are written down."""
    folder = stage_folder(run, record.stage) / "ends"
    return sorted([*folder.glob(record.job), *folder.glob(f"{record.job}_*")])


def _restarts(run: Path, record: JobRecord | None, states: Sequence[JobState]) -> str:
    """How often it began again, and why; what nobody of ours asked for was Slurm's doing."""
    if record is None:
        return ""
    kinds = Counter(life["kind"] for ends in _ends(run, record) for life in read_lives(ends) if life["requeued"])
    total = sum(state.restarts or 0 for state in states) or sum(kinds.values())
    if total > sum(kinds.values()):
        kinds["by Slurm"] = total - sum(kinds.values())
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{total} ({told})" if total else ""


def _errors(run: Path, record: JobRecord | None, states: Sequence[JobState]) -> list[str]:
    """The newest bad ends of each job, on a few lines with the path of the whole."""
    if record is None:
        return []
    told = []
    for ends in _ends(run, record):
        lives = [life for life in read_lives(ends) if life["kind"] in ("crashed", "final")]
        if lives:
            log = stage_folder(run, record.stage) / f"{ends.name}_0_log.out"
            told += [f"{record.stage}: {line}" for line in _told_of_life(ends, lives[-1], log)]
    for state in states:
        if state.exit_code == LOG_NOT_OPENED:
            told.append(
                f"{record.stage}: job {state.job} ended before it began: node {state.nodes} cannot open its log; is "
                f"{run} visible there?"
            )
    return told


def _told_of_life(ends: Path, life: dict[str, Any], log: Path) -> list[str]:
    """What ended a life: ranks that failed by themselves; else one that was killed; else those that lost a peer."""
    head = f"job {ends.name}, life {life['life']}"
    bad = [(path, end) for path, end in read_ends(ends, life["life"]) if end["kind"] != "stopped"]
    bad.sort(key=lambda pair: pair[1]["time"])
    own = [pair for pair in bad if pair[1]["kind"] != "lost"]
    killed = first_killed(log, life["life"])
    if not own and killed:
        return [f"{head}: {killed}\n  the whole: {log}"]
    if not bad:
        return [f"{head}: {life['reason']}\n  the whole: {log}"]
    return [f"{head}, {_told_of_rank(path, end)}" for path, end in (own or bad)[:SHOWN]]


def _told_of_rank(path: Path, end: dict[str, Any]) -> str:
    error = end["error"] if len(end["error"]) <= LONGEST else end["error"][:LONGEST] + " …"
    lines = [f"rank {end['rank']} on {end['node']}: {error}", *shorten(end["traceback"])]
    return "\n".join([*lines, f"  the whole: {path}"])


def first_killed(log: Path, life: int) -> str:
    """The first process that srun saw killed in a life, as `rank 3 on n4 was killed`; "" if none was."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    end = next((i for i, line in enumerate(lines) if f", life {life}: " in line), None)
    begin = max((i for i, line in enumerate(lines[:end]) if ", life " in line), default=0)
    for line in lines[begin:end] if end is not None else []:
        if match := KILLED.match(line):
            return f"rank {match['rank']} on {match['node']} was killed ({match['how']})"
    return ""


def shorten(traceback: str, frames: int = FRAMES) -> list[str]:
    """The innermost frames of the run's own code and the innermost of all, without what Python drew below them."""
    lines = traceback.splitlines()
    starts = [i for i, line in enumerate(lines) if FRAME.match(line)]
    own = [i for i in starts if "/code/" in lines[i]][-frames:]
    chosen = sorted({*own, *starts[-1:]})
    return [line for i in chosen for line in lines[i : i + 2]]


def render(run: Path, rows: Sequence[StageStatus]) -> RenderableType:
    """The table, below it why jobs wait, and what went wrong."""
    table = Table(title=str(run), title_justify="left", box=SIMPLE_HEAD)
    for name in ("stage", "job", "state", "nodes", "time", "restarts", "progress", "left"):
        table.add_column(name, overflow="fold")
    for row in rows:
        nodes = ",".join(dict.fromkeys(state.nodes for state in row.states if state.nodes and not state.ended))
        seconds = max((state.seconds for state in row.states), default=0)
        running = any(state.state == "RUNNING" for state in row.states)
        left = row.progress.left if row.progress and running else None
        table.add_row(
            row.stage, job_text(row.record), row.state, nodes, duration(seconds) if seconds else "", row.restarts,
            str(row.progress or ""), duration(left) if left is not None else "",
        )  # fmt: skip
    waits = {f"{row.stage}: {state.waits}": None for row in rows for state in row.states if state.waits}
    errors = [error for row in rows if row.failed or not row.finished for error in row.errors]
    return Group(table, *map(Text, [*waits, *errors]))


def job_text(record: JobRecord | None) -> str:
    """A job's id as people write it."""
    if record is None:
        return ""
    return f"{record.job}_[0-{record.workers - 1}]" if record.kind == ARRAY and record.workers > 1 else record.job


def duration(seconds: float) -> str:
    """`2-03:04:05`, as Slurm writes it, or `00:04:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hour:02d}:{minute:02d}:{second:02d}"


def screen() -> Console:
    """The terminal, or a wide page where the output goes elsewhere."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def print_submitted(run: Path, records: Sequence[JobRecord]) -> None:
    """Print the jobs just submitted: ids, sizes, states, where their output will be; below, why they wait."""
    states = job_states([record.job for record in records])
    table = Table(title=str(run), title_justify="left", box=SIMPLE_HEAD)
    for name in ("stage", "job", "size", "state", "output below the run directory"):
        table.add_column(name, overflow="fold")
    waits = dict[str, None]()
    for record in records:
        known = states.get(record.job, [])
        waits |= {f"{record.stage}: {state.waits}": None for state in known if state.waits}
        log = record.log(stage_folder(run, record.stage)).relative_to(run)
        table.add_row(record.stage, job_text(record), record.size, _counted(known) or "unknown to Slurm", str(log))
    screen().print(table, *map(Text, waits), sep="\n")


def print_status(run: Path) -> None:
    """Print how the run stands."""
    screen().print(render(run, read_status(run)), highlight=False)


def follow(run: Path, jobs: Sequence[str]) -> int:
    """Show how the run stands until these jobs have ended; 0 if all ended well, else 1. Ctrl-C only stops looking."""
    with Live(console=screen(), auto_refresh=False) as live:
        while True:
            rows = read_status(run)
            live.update(render(run, rows), refresh=True)
            watched = [row for row in rows if row.record and row.record.job in jobs]
            if all(row.states and row.ended for row in watched):
                return int(any(row.failed for row in watched))
            time.sleep(POLL)
