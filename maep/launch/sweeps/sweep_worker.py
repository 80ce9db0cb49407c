"""Run the points of a sweep: on this machine, or as one worker of an array.

`maep run cfg=ablation/table15 --scale cpu [--only 0,3-5]`, also `python launch/local.py cfg=…`
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from maep.ablation.running.overhead import OverheadTimer
from maep.ablation.running.point_records import PointState
from maep.ablation.running.point_runs import parse_only, run_points
from maep.ablation.study import Study, prepare, read_study, say_unread
from maep.ablation.tables.summary import write_summary
from maep.ablation.tables.summary_document import SUMMARY
from maep.launch.command_name import same_command
from maep.pipeline.stages import Launcher
from maep.runtime.console import say
from maep.runtime.exits import ExitCode


def run_sweep(namespace: argparse.Namespace, words: Sequence[str], launch: Launcher) -> int:
    """Run what is not finished of a sweep, and write its table.

    namespace: cfg, scale and only as `maep run` takes them; words: `key=value`.
    Returns 1 if a point failed. Raises Stopped when it is stopped, UserError before anything runs.
    """
    study = prepare(namespace.cfg, namespace.scale, words)
    say_unread(study, words)
    only = parse_only(namespace.only, len(study.points), study.sweep.halving)
    try:
        with OverheadTimer(study.directory) as overhead:
            succeeded = run_points(study.sweep, study.points, launch, overhead, only)
    finally:
        _write(study)
    return ExitCode.DONE if succeeded else ExitCode.FAILED


def show_sweep(namespace: argparse.Namespace, words: Sequence[str]) -> int:
    """Print the points of a sweep, what they share and what is finished; runs and writes nothing."""
    from maep.launch.sweeps.preview import print_preview

    study = prepare(namespace.cfg, namespace.scale, words)
    say_unread(study, words)
    parse_only(namespace.only, len(study.points), study.sweep.halving)
    print_preview(study)
    return ExitCode.DONE


def work_on_points(directory: Path) -> None:
    """What a worker of the array does: take points until none remains for it, then write the table as it stands."""
    from maep.training.worker import run_training

    study, command = read_study(directory)
    try:
        with OverheadTimer(study.directory) as overhead:
            run_points(study.sweep, study.points, run_training, overhead)
    finally:
        write_summary(study.sweep, study.points, study.directory, command)


def _write(study: Study) -> None:
    command = same_command()
    summary = write_summary(study.sweep, study.points, study.directory, command)
    print((study.directory / "table.md").read_text(encoding="utf-8"))
    for point in summary.points:
        if point.state == PointState.FAILED:
            say(f"{point.label}: failed: {point.reason}")
    say(f"{study.directory / SUMMARY}; again: {shlex.join(command)}")
