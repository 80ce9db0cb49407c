"""From a configuration to jobs in Slurm's queue: what is left to do is submitted, each stage behind those it needs."""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError

from maep.config.load import to_yaml
from maep.config.schema import Settings
from maep.launch.cluster.job_records import JobRecord, live_jobs, write_record
from maep.launch.cluster.jobs import ARRAY, Job, check_batch, job_graph
from maep.launch.cluster.settings import Cluster
from maep.launch.cluster.slurm_client import cancel, wait_also
from maep.launch.submission.batch_script import Submission
from maep.launch.submission.code_snapshot import check_code, copy_code, copy_path, mark_as_last
from maep.launch.submission.validate import check_run, check_with_slurm
from maep.pipeline.stages import STAGES, needs_of, unfinished_stages, wanted_stages
from maep.runtime.console import say
from maep.runtime.errors import fail
from maep.storage.atomic import atomic_file


@dataclass(frozen=True)
class Plan:
    """What a submission would do. waits: `{stage: jobs already there}` that the new ones wait for."""

    jobs: list[Job]
    waits: dict[str, list[str]]


def plan_jobs(settings: Settings, cluster: Cluster, wanted: str, live: dict[str, list[str]]) -> Plan:
    """The jobs that are to be submitted; says which stages are not, and why.

    wanted: a stage or all. live: `{stage: jobs}` that are queued or running for this run.
    Raises UserError if the stage wanted needs one that is neither finished nor under way.
    """
    names = wanted_stages(settings, wanted)
    left, needs = unfinished_stages(settings), real_needs(settings)
    for name in names:
        if name not in left:
            say(f"{name}: finished, not submitted")
        elif idle := STAGES[name].idle(settings):
            say(f"{name}: nothing to do, {idle}")
    stages = [name for name in names if name in left and not STAGES[name].idle(settings)]
    for name in [name for name in stages if name in live]:
        if wanted == name and STAGES[name].share is not None:
            say(f"{name}: its workers join those of job {', '.join(live[name])}")
        else:
            say(f"{name}: job {', '.join(live[name])} is under way, not submitted again")
            stages.remove(name)
    for name in stages:
        for before in needs[name]:
            if before in left and before not in stages and before not in live:
                fail(f"stage={name}: needs stage {before}, not finished ({left[before][0]}); submit it, or stage=all")
    others = {name: jobs for name, jobs in live.items() if name not in stages}
    return Plan(job_graph(stages, cluster, needs, others), others)


def real_needs(settings: Settings) -> dict[str, list[str]]:
    """`{stage: stages it needs}`, those with nothing to do replaced by what they need."""
    found: dict[str, list[str]] = {}
    for name, stage in STAGES.items():
        direct = [found[need] if STAGES[need].idle(settings) else [need] for need in needs_of(stage, settings)]
        found[name] = list(dict.fromkeys(need for part in direct for need in part))
    return found


def submission_of(settings: Settings) -> Submission:
    """Where things would lie; writes nothing."""
    run = Path(settings.run.dir).absolute()
    return Submission(settings, run, Path.cwd(), copy_path(run))


def on_paper(settings: Settings, cluster: Cluster, wanted: str) -> list[tuple[Job, str]]:
    """Every job that would be submitted, with its batch script; needs no Slurm, and writes nothing."""
    made, jobs = submission_of(settings), plan_jobs(settings, cluster, wanted, {}).jobs
    check_batch(settings, jobs)
    return [(job, made.script(job, [f"<{need}>" for need in job.needs])) for job in jobs]


def submit(settings: Settings, cluster: Cluster, wanted: str, *, allow_code_change: bool) -> list[JobRecord]:
    """Submit what is left to do, and return it. Bad input is told before anything is submitted or written."""
    made = submission_of(settings)
    live = {stage: [record for record, _ in jobs] for stage, jobs in live_jobs(made.run).items()}
    _check_live(made, [record for records in live.values() for record in records])
    plan = plan_jobs(settings, cluster, wanted, {name: [r.job for r in records] for name, records in live.items()})
    if not plan.jobs:
        return []
    check_batch(settings, plan.jobs)
    check_run(settings, cluster, plan.jobs)
    check_code(made.run, allowed=allow_code_change)
    check_with_slurm([(job, made.script(job, [])) for job in plan.jobs])
    records = _submit_all(made, plan)
    for record in records:
        _wait_for_joined(record, live)
    return records


def _check_live(made: Submission, live: Sequence[JobRecord]) -> None:
    """Jobs of other settings in the same run directory would undo each other's work."""
    for record in live:
        if record.config != str(made.config):
            fail(
                f"run.dir={made.settings.run.dir}: job {record.job} ({record.stage}) is under way with other settings; "
                f"cancel it first: launch/slurm.py cancel {made.settings.run.dir}"
            )


def _wait_for_joined(record: JobRecord, live: dict[str, list[JobRecord]]) -> None:
    """Let jobs that wait for a stage wait for the workers that joined it too."""
    for waiting in (other for jobs in live.values() for other in jobs):
        if record.stage in live and record.stage in waiting.needs:
            jobs = [job for needed in waiting.needs.values() for job in needed.split(",")]
            if problem := wait_also(waiting.job, [*jobs, record.job]):
                say(f"{waiting.stage}: job {waiting.job} does not wait for job {record.job}: {problem}")


def _submit_all(made: Submission, plan: Plan) -> list[JobRecord]:
    """Copy the code, freeze the settings, submit; all or none."""
    copy_code(made.run)
    mark_as_last(made.code)
    with atomic_file(made.config) as temporary:
        temporary.write_text(to_yaml(made.settings))
    known, records = dict(plan.waits), list[JobRecord]()
    for job in plan.jobs:
        try:
            record = submit_one(made, job, {need: known[need] for need in job.needs if need in known})
        except (FailedJobError, FailedSubmissionError) as error:
            cancel([record.job for record in records])
            fail(f"{job.stage}: Slurm refuses it: {error}; nothing was submitted")
        records.append(record)
        known[job.stage] = [record.job]
    return records


def submit_one(made: Submission, job: Job, needs: dict[str, list[str]]) -> JobRecord:
    """Submit a job or array and write its record. needs: `{stage: jobs that must have ended well before}`."""
    after = [name for jobs in needs.values() for name in jobs]
    executor, tasks = made.executor(job, after), made.tasks(job)
    submitted = executor.submit_array(tasks) if job.kind == ARRAY else [executor.submit(tasks[0])]
    record = JobRecord(
        job=submitted[0].job_id.split("_")[0], stage=job.stage, kind=job.kind, workers=job.workers, nodes=job.nodes,
        tasks=job.tasks, gpus=job.gpus, size=job.size, needs={name: ",".join(jobs) for name, jobs in needs.items()},
        code=str(made.code), config=str(made.config), command=shlex.join(sys.argv), submitted=time.time(),
    )  # fmt: skip
    write_record(made.run, record)
    return record
