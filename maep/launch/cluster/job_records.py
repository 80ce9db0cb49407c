"""What was submitted for a run: one record a job, `run.dir/jobs/STAGE/ID.json`, and where its output lies."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from maep.config.load import config_names, nearest
from maep.launch.cluster.jobs import ARRAY
from maep.launch.cluster.slurm_client import JobState, job_states
from maep.runtime.errors import fail
from maep.storage.atomic import read_json, write_json


@dataclass(frozen=True)
class JobRecord:
    """A job, or an array of `workers` jobs, as it was submitted.

    nodes: fewest and most. tasks, gpus: of each node. size: all this in words. needs: `{stage: job}` it waits for.
    code, config: what it runs, with which settings. command: of the submission. submitted: seconds since 1970.
    """

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
        """Where a rank's output goes, that of all its lives one after the other."""
        name = f"{self.job}_{worker}" if self.kind == ARRAY and self.workers > 1 else self.job
        return folder / f"{name}_{rank}_log.out"


def stage_folder(run: Path, stage: str) -> Path:
    """Where a stage's records, scripts, logs and ends lie."""
    return run / "jobs" / stage


def write_record(run: Path, record: JobRecord) -> None:
    """Commit the record of a job that was just submitted."""
    write_json(stage_folder(run, record.stage) / f"{record.job}.json", asdict(record))


def read_records(run: Path) -> list[JobRecord]:
    """Every job that was submitted for the run, the oldest first."""
    found = [JobRecord(**read_json(path)) for path in (run / "jobs").glob("*/*.json") if path.stem.isdigit()]
    return sorted(found, key=lambda record: (record.submitted, record.job))


def live_jobs(run: Path) -> dict[str, list[tuple[JobRecord, list[JobState]]]]:
    """`{stage: [(record, states)]}` of the jobs that are still queued or running."""
    records = read_records(run)
    states = job_states([record.job for record in records])
    live: dict[str, list[tuple[JobRecord, list[JobState]]]] = {}
    for record in records:
        known = states.get(record.job, [])
        if any(not state.ended for state in known):
            live.setdefault(record.stage, []).append((record, known))
    return live


def find_run(name: str) -> Path:
    """The run directory that a person means: a path, or a name below runs/. Raises UserError naming what there is."""
    for path in (Path(name), Path("runs") / name):
        if (path / "jobs").is_dir():
            return path
    there = sorted(path.parent.name for path in Path("runs").glob("*/jobs"))
    if (Path(name) / "config.yaml").is_file() or name in config_names():
        fail(f"{name}: no job was submitted for this run; runs with jobs: {', '.join(there) or 'none here'}")
    fail(f"{name}: no such run directory{nearest(name, there)} (runs with jobs: {', '.join(there) or 'none here'})")
