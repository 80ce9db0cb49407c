"""What a run is doing: state from Slurm, progress and errors from the run directory."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from maep.config.load import load_settings
from maep.launch.cluster.job_memory import JobMemory
from maep.launch.cluster.job_records import JobRecord, exit_folders, read_records, stage_folder
from maep.launch.cluster.jobs import ARRAY, KINDS
from maep.launch.cluster.slurm_client import JobState, job_states, silence
from maep.launch.job.attempts import read_attempts
from maep.launch.monitor.failures import failures_of
from maep.launch.monitor.preemption import is_preempted, preemption_line
from maep.launch.monitor.screen import duration, screen
from maep.launch.monitor.stage_progress import Progress, progress_of
from maep.pipeline.stage_records import StageRecord
from maep.runtime.errors import UserError

POLL = 2.0  # seconds between two looks while following: each asks the controller once a job
Report = Callable[[str], object]  # takes one line about a record that cannot be read
StatesOf = Callable[[Sequence[str]], dict[str, list[JobState]]]


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


def read_status(run: Path, damaged: Report, states_of: StatesOf = job_states) -> list[StageStatus]:
    """The stages in order, with their newest job each.

    damaged: called with one line for each record that cannot be read, which then counts as missing. states_of: tells
    how jobs stand.
    """
    newest = {record.stage: record for record in read_records(run, damaged)}
    states = states_of([record.job for record in newest.values()])
    books = _stage_records(run, damaged)
    return [_stage_status(run, stage, newest.get(stage), states, books, damaged) for stage in KINDS]


def _stage_status(
    run: Path,
    stage: str,
    record: JobRecord | None,
    states: dict[str, list[JobState]],
    books: dict[str, StageRecord],
    damaged: Report,
) -> StageStatus:
    finished = _finished(stage, books)
    if record is None:
        return StageStatus(stage, finished, None, [], None, "", [])
    jobs = states.get(record.job, [])
    begun = any(state.seconds or state.restarts for state in jobs)
    progress = _progress(record, damaged) if begun else None
    restarts, errors = restarts_of(run, record, jobs, damaged), failures_of(run, record, jobs, damaged)
    return StageStatus(stage, finished, record, jobs, progress, restarts, errors)


def _progress(record: JobRecord, damaged: Report) -> Progress | None:
    try:
        return progress_of(record.stage, load_settings(record.config))
    except UserError as error:
        damaged(str(error))
        return None


def _stage_records(run: Path, damaged: Report) -> dict[str, StageRecord]:
    records = {}
    for path in sorted((run / "stages").glob("*.json")):
        try:
            records[path.stem] = StageRecord.read(path)
        except UserError as error:
            damaged(str(error))
    return records


def _finished(stage: str, books: dict[str, StageRecord]) -> bool:
    """Whether the stage's own record says so, and what it was made from is still what is there."""
    record = books.get(stage)
    if record is None or not record.finished:
        return False
    return all(name in books and books[name].identity == identity for name, identity in record.inputs.items())


def restarts_of(run: Path, record: JobRecord, states: Sequence[JobState], damaged: Report) -> str:
    """How often it was requeued, and why; what nobody of ours asked for was Slurm's doing."""
    attempts = [attempt for folder in exit_folders(run, record) for attempt in read_attempts(folder, damaged)]
    kinds = Counter(str(attempt.kind) for attempt in attempts if attempt.requeued)
    total = sum(state.restarts or 0 for state in states) or sum(kinds.values())
    if total > sum(kinds.values()):
        kinds["by Slurm"] = total - sum(kinds.values())
    reasons = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{total} ({reasons})" if total else ""


def render(run: Path, rows: Sequence[StageStatus], damaged: Sequence[str] = ()) -> RenderableType:
    """The table, below it why jobs wait, what went wrong, and which records cannot be read."""
    table = Table(title=str(run), title_justify="left", box=SIMPLE_HEAD)
    for name in ("stage", "job", "state", "nodes", "time", "restarts", "progress", "left"):
        table.add_column(name, overflow="fold")
    for row in rows:
        nodes = ",".join(dict.fromkeys(state.nodes for state in row.states if state.nodes and not state.ended))
        seconds = max((state.seconds for state in row.states), default=0)
        running = any(state.state == "RUNNING" for state in row.states)
        remaining = row.progress.remaining if row.progress and running else None
        table.add_row(
            row.stage, job_text(row.record), row.state, nodes, duration(seconds) if seconds else "", row.restarts,
            str(row.progress or ""), duration(remaining) if remaining is not None else "",
        )  # fmt: skip
    waits = {f"{row.stage}: {state.waits}": None for row in rows for state in row.states if state.waits}
    errors = [error for row in rows if row.failed or not row.finished for error in row.errors]
    errors += [
        preemption_line(row.record) for row in rows if row.record and not row.finished and is_preempted(row.states)
    ]
    # A record may be read for more than one purpose; its damage is told once.
    left_out = [f"left out: {line}" for line in dict.fromkeys(damaged)]
    return Group(table, *map(Text, [*waits, *errors, *left_out]))


def job_text(record: JobRecord | None) -> str:
    """A job's id as people write it."""
    if record is None:
        return ""
    return f"{record.job}_[0-{record.workers - 1}]" if record.kind == ARRAY and record.workers > 1 else record.job


def print_submitted(run: Path, records: Sequence[JobRecord]) -> None:
    """Print the jobs just submitted: ids, sizes, states, where their output will be; below, why they wait."""
    states = job_states([record.job for record in records])
    table = Table(title=str(run), title_justify="left", box=SIMPLE_HEAD)
    for name in ("stage", "job", "size", "state", "output below the run directory"):
        table.add_column(name, overflow="fold")
    waits = dict[str, None]()
    for record in records:
        jobs = states.get(record.job, [])
        waits |= {f"{record.stage}: {state.waits}": None for state in jobs if state.waits}
        log = record.log(stage_folder(run, record.stage)).relative_to(run)
        table.add_row(record.stage, job_text(record), record.size, _counted(jobs) or "unknown to Slurm", str(log))
    screen().print(table, *map(Text, waits), sep="\n")


def print_status(run: Path) -> None:
    """Print how the run stands."""
    damaged: list[str] = []
    rows = read_status(run, damaged.append)
    screen().print(render(run, rows, damaged), highlight=False)
    if any(row.record and not row.states and not row.finished for row in rows) and (problem := silence()):
        screen().print(Text(f"{problem}; how jobs stand is not known here, what they have written is above"))


def follow(run: Path, records: Sequence[JobRecord], memory: JobMemory) -> int:
    """Show how the run stands until these jobs have ended; 0 if all ended well, else 1. Ctrl-C only stops looking."""
    jobs = [record.job for record in records]
    with Live(console=screen(), auto_refresh=False) as live:
        while True:
            damaged: list[str] = []
            rows = read_status(run, damaged.append, lambda newest: memory.states([*{*jobs, *newest}]))
            live.update(render(run, rows, damaged), refresh=True)
            if all(map(memory.is_over, jobs)):
                finished = {row.stage for row in rows if row.finished}
                return int(any(memory.went_wrong(each, partial(finished.__contains__, each.stage)) for each in records))
            time.sleep(POLL)
