"""A sweep on a SLURM cluster: an array of workers that share its points.

run.dir/sweep.json    what was asked: cfg, scale, words, command; a later submission may ask for more values
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from maep.ablation.grid.points import Point
from maep.ablation.running.point_records import is_finished
from maep.ablation.running.pretrained import by_pretraining
from maep.ablation.running.rungs import halving_state
from maep.ablation.study import REQUEST, Study, SweepRequest, prepare, read_study, say_unread
from maep.ablation.tables.summary import write_summary
from maep.config.load import to_yaml
from maep.config.schema import Settings
from maep.launch.cluster.job_records import JobRecord, live_jobs
from maep.launch.cluster.jobs import ARRAY, POINTS, Job
from maep.launch.cluster.settings import Cluster
from maep.launch.cluster.slurm_client import most_workers
from maep.launch.submission.code_snapshot import check_code, copy_code, mark_as_last
from maep.launch.submission.read_by_jobs import check_what_is_read
from maep.launch.submission.submit import submission_of, submit_one, warn_without_gpus
from maep.launch.submission.validate import check_run, check_with_slurm
from maep.launch.sweeps.preview import print_preview
from maep.pipeline.stages import stages_of
from maep.runtime.console import say
from maep.storage.atomic import atomic_file


def sweep_settings(study: Study) -> Settings:
    """What the array's batch script and its tasks are told: the first point's settings, in the sweep's directory."""
    first = study.points[0].settings
    return replace(first, run=replace(first.run, name=study.sweep.name, dir=str(study.directory)))


def _remaining_points(study: Study) -> list[Point]:
    """Those that are to run: neither finished nor stopped."""
    return [point for point in halving_state(study.sweep, study.points).active if not is_finished(point)]


def is_sweep_finished(directory: Path) -> bool:
    """Whether no point of a sweep that was submitted is left to run."""
    return not _remaining_points(read_study(directory)[0])


def points_job(study: Study, cluster: Cluster) -> Job:
    """An array of a worker for each pretraining of points that are to run, `array_parallelism` of them at a time."""
    settings, workers = cluster.of(POINTS), len(by_pretraining(_remaining_points(study)))
    return Job(POINTS, ARRAY, settings, (1, 1), 1, min(settings.gpus_per_node or 0, 1), workers, ())


def preview_sweep(namespace: argparse.Namespace, words: Sequence[str], cluster: Cluster) -> list[tuple[Job, str]]:
    """Print what would be submitted, and return the array with its batch script; [] if nothing is left.

    Needs no Slurm, and writes nothing.
    """
    study = prepare(namespace.cfg, namespace.scale, words)
    say_unread(study, words)
    settings, job = sweep_settings(study), points_job(study, cluster)
    print_preview(study)
    warn_without_gpus(settings, [job])
    return [(job, submission_of(settings).script(job, []))] if job.workers else []


def submit_sweep(namespace: argparse.Namespace, words: Sequence[str], cluster: Cluster) -> list[JobRecord]:
    """Submit what is not finished of a sweep; [] if nothing is left. Bad input is told before anything is written."""
    study = prepare(namespace.cfg, namespace.scale, words)
    say_unread(study, words)
    request = SweepRequest(namespace.cfg, study.sweep.scale, tuple(words), tuple(sys.argv))
    settings, job = sweep_settings(study), points_job(study, cluster)
    job = replace(job, workers=min(job.workers, most_workers()))  # workers share the points
    if not job.workers:
        say(f"{study.sweep.name}: all {len(study.points)} points are finished or stopped, nothing submitted")
        write_summary(study.sweep, study.points, study.directory, sys.argv)
        return []
    submission = submission_of(settings)
    if POINTS in live_jobs(submission.run):
        say(f"{study.sweep.name}: an array is under way; its points are shared with these workers")
    check_what_is_read((point.settings, stages_of(point.settings)) for point in _remaining_points(study))
    check_run(settings, cluster, [job])
    check_code(submission.run, allowed=namespace.allow_code_change)
    check_with_slurm([(job, submission.script(job, []))])
    warn_without_gpus(settings, [job])
    copy_code(submission.run)
    mark_as_last(submission.code)
    request.write(study.directory / REQUEST)
    with atomic_file(submission.config) as temporary:
        temporary.write_text(to_yaml(settings), encoding="utf-8")
    return [submit_one(submission, job, {})]
