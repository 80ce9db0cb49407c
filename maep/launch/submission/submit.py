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
from maep.launch.cluster.outer_shell import without_allocation
from maep.launch.cluster.settings import Cluster
from maep.launch.cluster.slurm_client import cancel, wait_also
from maep.launch.command_name import command_name
from maep.launch.submission.batch_script import Submission
from maep.launch.submission.code_snapshot import check_code, copy_code, copy_path, mark_as_last
from maep.launch.submission.read_by_jobs import check_what_is_read
from maep.launch.submission.validate import check_run, check_with_slurm
from maep.pipeline.execution import unfinished_stages
from maep.pipeline.stages import STAGES, needs_of, wanted_stages
from maep.runtime.console import say
from maep.runtime.errors import fail
from maep.runtime.text import masked
from maep.storage.atomic import atomic_file


@dataclass(frozen=True)
class Plan:
    """What a submission would do. waits: `{stage: jobs submitted before}` that the new ones wait for."""

    jobs: list[Job]
    waits: dict[str, list[str]]


def plan_jobs(settings: Settings, cluster: Cluster, target: str, live: dict[str, list[str]]) -> Plan:
    """The jobs that are to be submitted; says which stages are not, and why.

    target: a stage or all. live: `{stage: jobs}` that are queued or running for this run.
    Raises UserError if the stage asked for needs one that is neither finished nor under way.
    """
    names = wanted_stages(settings, target)
    unfinished, needs = unfinished_stages(settings), real_needs(settings)
    for name in names:
        if name not in unfinished:
            say(f"{name}: finished, not submitted")
        elif idle := STAGES[name].idle(settings):
            say(f"{name}: nothing to do, {idle}")
    stages = [name for name in names if name in unfinished and not STAGES[name].idle(settings)]
    for name in [name for name in stages if name in live]:
        if target == name and STAGES[name].share is not None:
            say(f"{name}: its workers join those of job {', '.join(live[name])}")
        else:
            say(f"{name}: job {', '.join(live[name])} is under way, not submitted again")
            stages.remove(name)
    for name in stages:
        for before in needs[name]:
            if before in unfinished and before not in stages and before not in live:
                why = unfinished[before][0]
                fail(f"stage={name}: needs stage {before}, not finished ({why}); submit it, or stage=all")
    others = {name: jobs for name, jobs in live.items() if name not in stages}
    return Plan(job_graph(stages, cluster, needs, others), others)


def real_needs(settings: Settings) -> dict[str, list[str]]:
    """`{stage: stages it needs}`, those with nothing to do replaced by what they need."""
    needs: dict[str, list[str]] = {}
    for name, stage in STAGES.items():
        direct = [needs[need] if STAGES[need].idle(settings) else [need] for need in needs_of(stage, settings)]
        needs[name] = list(dict.fromkeys(need for part in direct for need in part))
    return needs


def submission_of(settings: Settings) -> Submission:
    """Where things would lie; writes nothing."""
    run = Path(settings.run.dir).absolute()
    return Submission(settings, run, Path.cwd(), copy_path(run))


def on_paper(settings: Settings, cluster: Cluster, target: str) -> list[tuple[Job, str]]:
    """Every job that would be submitted, with its batch script; needs no Slurm, and writes nothing."""
    submission, jobs = submission_of(settings), plan_jobs(settings, cluster, target, {}).jobs
    check_batch(settings, jobs)
    warn_without_gpus(settings, jobs)
    check_what_is_read([(settings, [job.stage for job in jobs])], on_paper=True)
    return [(job, submission.script(job, [f"<{need}>" for need in job.needs])) for job in jobs]


def submit(settings: Settings, cluster: Cluster, target: str, *, allow_code_change: bool) -> list[JobRecord]:
    """Submit what is left to do, and return it. Bad input is told before anything is submitted or written."""
    submission = submission_of(settings)
    live = {stage: [record for record, _ in jobs] for stage, jobs in live_jobs(submission.run).items()}
    _check_live(submission, [record for records in live.values() for record in records])
    plan = plan_jobs(settings, cluster, target, {name: [r.job for r in records] for name, records in live.items()})
    if not plan.jobs:
        return []
    check_batch(settings, plan.jobs)
    check_what_is_read([(settings, [job.stage for job in plan.jobs])])
    check_run(settings, cluster, plan.jobs)
    check_code(submission.run, allowed=allow_code_change)
    check_with_slurm([(job, submission.script(job, [])) for job in plan.jobs])
    warn_without_gpus(settings, plan.jobs)
    records = _submit_all(submission, plan)
    for record in records:
        _wait_for_joined(record, live)
    return records


def warn_without_gpus(settings: Settings, jobs: Sequence[Job]) -> None:
    """Say so, with the hours, if what is meant for accelerators gets none."""
    from maep.launch.estimate.cpu_hours import warning

    if line := warning(settings, jobs):
        say(f"warning: {line}")


def _check_live(submission: Submission, live: Sequence[JobRecord]) -> None:
    """Jobs of other settings in the same run directory would undo each other's work."""
    for record in live:
        if record.config != str(submission.config):
            run = submission.settings.run.dir
            fail(
                f"run.dir={run}: job {record.job} ({record.stage}) is under way with other settings; cancel it first: "
                f"{command_name('slurm')} cancel {run}"
            )


def _wait_for_joined(record: JobRecord, live: dict[str, list[JobRecord]]) -> None:
    """Let jobs that wait for a stage wait for the workers that joined it too."""
    for waiting in (other for jobs in live.values() for other in jobs):
        if record.stage in live and record.stage in waiting.needs:
            jobs = [job for needed in waiting.needs.values() for job in needed.split(",")]
            if problem := wait_also(waiting.job, [*jobs, record.job]):
                say(f"{waiting.stage}: job {waiting.job} does not wait for job {record.job}: {problem}")


def _submit_all(submission: Submission, plan: Plan) -> list[JobRecord]:
    """Copy the code, freeze the settings, submit; all or none."""
    copy_code(submission.run)
    mark_as_last(submission.code)
    with atomic_file(submission.config) as temporary:
        temporary.write_text(to_yaml(submission.settings), encoding="utf-8")
    jobs_of, records = dict(plan.waits), list[JobRecord]()
    for job in plan.jobs:
        try:
            record = submit_one(submission, job, {need: jobs_of[need] for need in job.needs if need in jobs_of})
        except (FailedJobError, FailedSubmissionError) as error:
            cancel([record.job for record in records])
            fail(f"{job.stage}: Slurm refuses it: {error}; nothing was submitted")
        records.append(record)
        jobs_of[job.stage] = [record.job]
    return records


def submit_one(submission: Submission, job: Job, needs: dict[str, list[str]]) -> JobRecord:
    """Submit a job or array and write its record. needs: `{stage: jobs that must have ended well before}`."""
    after = [name for jobs in needs.values() for name in jobs]
    executor, tasks = submission.executor(job, after), submission.tasks(job)
    with without_allocation():
        submitted = executor.submit_array(tasks) if job.kind == ARRAY else [executor.submit(tasks[0])]
    record = JobRecord(
        job=submitted[0].job_id.split("_")[0], stage=job.stage, kind=job.kind, workers=job.workers, nodes=job.nodes,
        tasks=job.tasks, gpus=job.gpus, size=job.size, needs={name: ",".join(jobs) for name, jobs in needs.items()},
        code=str(submission.code), config=str(submission.config), command=masked(shlex.join(sys.argv)),
        submitted=time.time(),
    )  # fmt: skip
    write_record(submission.run, record)
    return record
