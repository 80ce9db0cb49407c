"""Which files hold the output of a run's processes, and their last lines."""

import re
from collections.abc import Iterator
from pathlib import Path

from maep.launch.cluster.job_records import JobRecord, read_records, stage_folder
from maep.launch.command_name import command_name
from maep.launch.job.attempts import warn
from maep.runtime.errors import fail, nearest


def newest_job(run: Path, stage: str | None) -> JobRecord:
    """The newest job of a stage, or the newest of the run that has written something. Raises UserError if none."""
    records = read_records(run, warn)
    names = list(dict.fromkeys(record.stage for record in records))
    if stage and stage not in names:
        fail(f"--stage {stage}: no job was submitted for it{nearest(stage, names)} (there are: {', '.join(names)})")
    for record in reversed(records):
        if (stage and record.stage == stage) or (not stage and logs_of(run, record)):
            return record
    fail(f"{run}: none of its jobs has written anything yet; see {command_name('slurm')} status {run}")


def logs_of(run: Path, record: JobRecord) -> list[Path]:
    """The output files of a job, or of an array's workers, by worker and rank."""
    paths = stage_folder(run, record.stage).glob(f"{record.job}_*_log.out")
    return sorted(paths, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def show_logs(run: Path, stage: str | None, rank: int | None, worker: int | None, lines: int) -> Iterator[str]:
    """The last lines of the newest job's output: a path, then its lines. lines: how many, 0 for all."""
    record = newest_job(run, stage)
    logs = logs_of(run, record)
    matches = [path for path in logs if _is_output_of(path.name, record, rank or 0, worker)]
    if not matches:
        names = ", ".join(path.name for path in logs) or "nothing yet"
        fail(f"{record.stage}: job {record.job} has no such output; in {stage_folder(run, record.stage)}: {names}")
    for path in matches:
        yield f"==> {path} <=="
        text = path.read_text(errors="replace", encoding="utf-8").splitlines()
        yield from text[-lines:] if lines else text


def _is_output_of(name: str, record: JobRecord, rank: int, worker: int | None) -> bool:
    """Whether a file is the output of that rank; of an array, of that worker, or with None of any."""
    numbers = [int(number) for number in re.findall(r"\d+", name.removeprefix(record.job))]
    if len(numbers) == 2:  # an array: worker, rank
        return numbers[1] == rank and (worker is None or numbers[0] == worker)
    return numbers == [rank]
