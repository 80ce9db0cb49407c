"""Run the points of a sweep: on this machine, or as one worker of an array.

`python launch/local.py cfg=ablation/table15 --scale cpu [--only 0,3-5]`
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from maep.ablation.running.overhead import Spent
from maep.ablation.running.point_runs import parse_only, run_points
from maep.ablation.study import Study, prepare, read_study
from maep.ablation.tables.summary import SUMMARY, write_summary
from maep.pipeline.stages import Launcher
from maep.runtime.console import say
from maep.runtime.exits import ExitCode
from maep.training.worker import run_training


def run_sweep(namespace: argparse.Namespace, words: Sequence[str], launch: Launcher) -> int:
    """Run what is not finished of a sweep, and write its table.

    namespace: cfg, scale and only as `launch/local.py` takes them; words: `key=value`.
    Returns 1 if a point failed. Raises Stopped when it is stopped, UserError before anything runs.
    """
    study = prepare(namespace.cfg, namespace.scale, words)
    only = parse_only(namespace.only, len(study.points), study.sweep.halving)
    try:
        with Spent(study.directory) as spent:
            all_well = run_points(study.sweep, study.points, launch, spent, only)
    finally:
        _write(study)
    return ExitCode.DONE if all_well else ExitCode.FAILED


def show_sweep(namespace: argparse.Namespace, words: Sequence[str]) -> int:
    """Print the points of a sweep, what they share and what is finished; runs and writes nothing."""
    from maep.launch.sweeps.preview import print_preview

    study = prepare(namespace.cfg, namespace.scale, words)
    parse_only(namespace.only, len(study.points), study.sweep.halving)
    print_preview(study)
    return 0


def work_on_points(directory: Path) -> None:
    """What a worker of the array does: take points until none is left for it, then write the table as it stands."""
    study, command = read_study(directory)
    try:
        with Spent(study.directory) as spent:
            run_points(study.sweep, study.points, run_training, spent)
    finally:
        write_summary(study.sweep, study.points, study.directory, command)


def _write(study: Study) -> None:
    command = ["python", *sys.argv]
    summary = write_summary(study.sweep, study.points, study.directory, command)
    print((study.directory / "table.md").read_text())
    for point in summary["points"]:
        if point["state"] == "failed":
            say(f"{' · '.join(point['names'])}, seed {point['seed']}: failed: {point['reason']}")
    say(f"{study.directory / SUMMARY}; again: {shlex.join(command)}")
