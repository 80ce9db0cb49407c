"""Which files hold the output of a run's processes, and their last lines."""

import re
from collections.abc import Iterator
from pathlib import Path

from maep.config.load import nearest
from maep.launch.cluster.job_records import JobRecord, read_records, stage_folder
from maep.runtime.errors import fail

RANK = re.compile(r"_(\d+)_log\.out$")


def newest_job(run: Path, stage: str | None) -> JobRecord:
    """The newest job of a stage, or the newest of the run that has written something. Raises UserError if none."""
    records = read_records(run)
    names = list(dict.fromkeys(record.stage for record in records))
    if stage and stage not in names:
        fail(f"--stage {stage}: no job was submitted for it{nearest(stage, names)} (there are: {', '.join(names)})")
    for record in reversed(records):
        if (stage and record.stage == stage) or (not stage and logs_of(run, record)):
            return record
    fail(f"{run}: none of its jobs has written anything yet; see launch/slurm.py status {run}")


def logs_of(run: Path, record: JobRecord) -> list[Path]:
    """The output files of a job, or of an array's workers, by worker and rank."""
    folder = stage_folder(run, record.stage)
    found = [*folder.glob(f"{record.job}_*_log.out")]
    return sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def show_logs(run: Path, stage: str | None, rank: int | None, worker: int | None, lines: int) -> Iterator[str]:
    """The last lines of the newest job's output: a path, then its lines. lines: how many, 0 for all."""
    record = newest_job(run, stage)
    chosen = [
        path for path in logs_of(run, record) if _is_meant(path.name, record, 0 if rank is None else rank, worker)
    ]
    if not chosen:
        there = ", ".join(path.name for path in logs_of(run, record)) or "nothing yet"
        fail(f"{record.stage}: job {record.job} has no such output; in {stage_folder(run, record.stage)}: {there}")
    for path in chosen:
        yield f"==> {path} <=="
        text = path.read_text(errors="replace").splitlines()
        yield from text[-lines:] if lines else text


def _is_meant(name: str, record: JobRecord, rank: int, worker: int | None) -> bool:
    numbers = [int(number) for number in re.findall(r"\d+", name.removeprefix(record.job))]
    if len(numbers) == 2:  # an array: worker, rank
        return numbers[1] == rank and (worker is None or numbers[0] == worker)
    return numbers == [rank]
