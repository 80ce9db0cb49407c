"""A sweep on a SLURM cluster: an array of workers that share its points, and how the points stand.

run.dir/sweep.json    what was asked: cfg, scale, words, command; a later submission may ask for more values
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from maep.ablation.running.point_records import is_finished, read_record
from maep.ablation.running.pretrained import by_pretraining
from maep.ablation.running.rungs import standing, state_of
from maep.ablation.spec.points import Point
from maep.ablation.study import SPEC, Study, prepare, read_study
from maep.ablation.tables.summary import write_summary
from maep.config.load import to_yaml
from maep.config.schema import Settings
from maep.launch.cluster.job_records import JobRecord, live_jobs
from maep.launch.cluster.jobs import ARRAY, POINTS, Job
from maep.launch.cluster.settings import Cluster
from maep.launch.monitor.stage_progress import progress_of
from maep.launch.monitor.status import duration, screen
from maep.launch.submission.code_snapshot import check_code, copy_code, mark_as_last
from maep.launch.submission.submit import submission_of, submit_one
from maep.launch.submission.validate import check_run, check_with_slurm
from maep.launch.sweeps.preview import print_preview
from maep.runtime.console import say
from maep.storage.atomic import atomic_file, read_json, write_json


def sweep_settings(study: Study) -> Settings:
    """What the array's batch script and its tasks are told: the first point's settings, in the sweep's directory."""
    first = study.points[0].settings
    return replace(first, run=replace(first.run, name=study.sweep.name, dir=str(study.directory)))


def points_job(study: Study, cluster: Cluster) -> Job:
    """An array of a worker for each pretraining of points that are to run, `array_parallelism` of them at a time."""
    asked, going = cluster.of(POINTS), standing(study.sweep, study.points).left
    left = [point for point in going if not is_finished(point)]
    return Job(POINTS, ARRAY, asked, (1, 1), 1, min(asked.gpus_per_node, 1), len(by_pretraining(left)), ())


def preview_sweep(namespace: argparse.Namespace, words: Sequence[str], cluster: Cluster) -> list[tuple[Job, str]]:
    """Print what would be submitted, and return the array with its batch script; [] if nothing is left.

    Needs no Slurm, and writes nothing.
    """
    study = prepare(namespace.cfg, namespace.scale, words)
    settings, job = sweep_settings(study), points_job(study, cluster)
    print_preview(study)
    return [(job, submission_of(settings).script(job, []))] if job.workers else []


def submit_sweep(namespace: argparse.Namespace, words: Sequence[str], cluster: Cluster) -> list[JobRecord]:
    """Submit what is not finished of a sweep; [] if nothing is left. Bad input is told before anything is written."""
    study = prepare(namespace.cfg, namespace.scale, words)
    spec = {"cfg": namespace.cfg, "scale": study.sweep.scale, "words": list(words), "command": sys.argv}
    settings, job = sweep_settings(study), points_job(study, cluster)
    if not job.workers:
        say(f"{study.sweep.name}: all {len(study.points)} points are finished or stopped, nothing submitted")
        write_summary(study.sweep, study.points, study.directory, sys.argv)
        return []
    made = submission_of(settings)
    if POINTS in live_jobs(made.run):
        say(f"{study.sweep.name}: an array is under way; its points are shared with these workers")
    check_run(settings, cluster, [job])
    check_code(made.run, allowed=namespace.allow_code_change)
    check_with_slurm([(job, made.script(job, []))])
    copy_code(made.run)
    mark_as_last(made.code)
    write_json(study.directory / SPEC, spec)
    with atomic_file(made.config) as temporary:
        temporary.write_text(to_yaml(settings))
    return [submit_one(made, job, {})]


def print_sweep(directory: Path) -> None:
    """Print how every point stands: finished, running with the time left, waiting, or failed and why."""
    study, command = read_study(directory)
    records, stopped = (
        [(point, read_record(point)) for point in study.points],
        standing(study.sweep, study.points).stopped,
    )
    counts = Counter(state_of(point, stopped).split(" (")[0] for point, _ in records)
    title = f"{directory}: " + ", ".join(f"{count} {state}" for state, count in counts.items())
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("point", *(axis.title for axis in study.sweep.axes), "seed", "state", "time", "progress", "left"):
        table.add_column(name, overflow="fold")
    for number, (point, record) in enumerate(records):
        stage, progress = _under_way(point) if record.state == "running" else ("", None)
        left = duration(progress.left) if progress and progress.left is not None else ""
        spent = duration(record.seconds) if record.seconds else ""
        done = f"{stage} {progress or ''}".strip()
        table.add_row(str(number), *point.names, str(point.seed), state_of(point, stopped), spent, done, left)
    failed = [f"point {n}: {r.reason}" for n, (_, r) in enumerate(records) if r.state == "failed"]
    again = [f"failed points run again with: {shlex.join(command)}"] if failed else []
    screen().print(Group(table, *map(Text, [*failed, *again])), highlight=False)


def _under_way(point: Point) -> tuple[str, Any]:
    """The stage that a point is at, and how far that is."""
    for path in sorted((point.directory / "stages").glob("*.json"), key=lambda path: -path.stat().st_mtime):
        if not read_json(path)["finished"]:
            return path.stem, progress_of(path.stem, point.settings)
    return "", None
