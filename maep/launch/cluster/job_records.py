"""What was submitted for a run: one record a job, `run.dir/jobs/STAGE/ID.json`, and where its output lies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from maep.config.load import config_names
from maep.launch.cluster.jobs import ARRAY
from maep.launch.cluster.slurm_client import JobState, job_states
from maep.runtime.errors import UserError, fail, nearest
from maep.storage.documents import Document

EXITS, EXITS_OF_FORMAT_0 = "exits", "ends"


@dataclass(frozen=True)
class JobRecord(Document):
    """A job, or an array of `workers` jobs, as it was submitted.

    nodes: fewest and most. tasks, gpus: of each node. size: all this in words. needs: `{stage: job}` it waits for.
    code, config: what it runs, with which settings. command: of the submission. submitted: seconds since 1970.
    """

    FORMAT: ClassVar[int] = 1

    job: str
    stage: str
    kind: str
    workers: int
    nodes: tuple[int, int]
    tasks: int
    gpus: int
    size: str = ""
    needs: dict[str, str] = field(default_factory=dict)
    code: str = ""
    config: str = ""
    command: str = ""
    submitted: float = 0.0

    def log(self, folder: Path, rank: int = 0, worker: int = 0) -> Path:
        """Where a rank's output goes, that of all its attempts one after the other."""
        name = f"{self.job}_{worker}" if self.kind == ARRAY and self.workers > 1 else self.job
        return folder / f"{name}_{rank}_log.out"


def stage_folder(run: Path, stage: str) -> Path:
    """Where a stage's records, scripts, logs and exits lie."""
    return run / "jobs" / stage


def exits_folder(run: Path, stage: str) -> Path:
    """Where it is written down how attempts of a stage's jobs ended: a folder a job, or a worker of an array."""
    return stage_folder(run, stage) / EXITS


def exit_folders(run: Path, record: JobRecord) -> list[Path]:
    """The folders of a job, or of its workers, that hold how their attempts ended; also of jobs of format 0."""
    folders = [exits_folder(run, record.stage), stage_folder(run, record.stage) / EXITS_OF_FORMAT_0]
    return sorted(path for folder in folders for name in (record.job, f"{record.job}_*") for path in folder.glob(name))


def write_record(run: Path, record: JobRecord) -> None:
    """Commit the record of a job that was just submitted."""
    record.write(stage_folder(run, record.stage) / f"{record.job}.json")


def read_records(run: Path, damaged: Callable[[str], object] = fail) -> list[JobRecord]:
    """Every job that was submitted for the run, the oldest first.

    damaged: called with one line for each record that cannot be read, which is then passed over; by default it raises
    UserError.
    """
    records = []
    for path in sorted((run / "jobs").glob("*/*.json")):
        if path.stem.isdigit():
            try:
                record = JobRecord.read(path)
                if record.job != path.stem:
                    fail(f"{path}: job={record.job!r} is not the job that the file is named after; remove the file")
                records.append(record)
            except UserError as error:
                damaged(str(error))
    return sorted(records, key=lambda record: (record.submitted, record.job))


def live_jobs(run: Path, damaged: Callable[[str], object] = fail) -> dict[str, list[tuple[JobRecord, list[JobState]]]]:
    """`{stage: [(record, states)]}` of the jobs still queued or running. damaged: as in `read_records`."""
    records = read_records(run, damaged)
    states = job_states([record.job for record in records])
    live: dict[str, list[tuple[JobRecord, list[JobState]]]] = {}
    for record in records:
        answers = states.get(record.job, [])
        if any(not state.ended for state in answers):
            live.setdefault(record.stage, []).append((record, answers))
    return live


def find_run(name: str) -> Path:
    """The run directory that a person means: a path, or a name below runs/. Raises UserError naming what there is."""
    for path in (Path(name), Path("runs") / name):
        if (path / "jobs").is_dir():
            return path
    runs = sorted(path.parent.name for path in Path("runs").glob("*/jobs"))
    if (Path(name) / "config.yaml").is_file() or name in config_names():
        fail(f"{name}: no job was submitted for this run; runs with jobs: {', '.join(runs) or 'none here'}")
    fail(f"{name}: no such run directory{nearest(name, runs)} (runs with jobs: {', '.join(runs) or 'none here'})")
