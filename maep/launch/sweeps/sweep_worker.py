"""Run the points of a sweep: on this machine, or as one worker of an array.

`python launch/local.py cfg=ablation/table15 --scale cpu [--only 0,3-5]`
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from maep.ablation.run import parse_only, run_points
from maep.ablation.spent import Spent
from maep.ablation.study import Study, prepare, read_study
from maep.ablation.summary import SUMMARY, write_summary
from maep.progress import say
from maep.stages import Launcher
from maep.training.worker import run_training, stopped_code


def run_sweep(namespace: argparse.Namespace, words: Sequence[str], launch: Launcher) -> int:
    """Run what is not finished of a sweep, and write its table.

    namespace: cfg, scale and only as `launch/local.py` takes them; words: `key=value`.
    Returns 1 if a point failed, 128 + signal when stopped. Raises UserError before anything runs.
    """
    study = prepare(namespace.cfg, namespace.scale, words)
    only = parse_only(namespace.only, len(study.points), study.sweep.halving)
    said: list[bool] = []
    try:
        with Spent(study.directory) as spent:
            code = stopped_code(lambda: said.append(run_points(study.sweep, study.points, launch, spent, only)))
    finally:
        _write(study)
    return code or int(not said[0])


def show_sweep(namespace: argparse.Namespace, words: Sequence[str]) -> int:
    """Print the points of a sweep, what they share and what is finished; runs and writes nothing."""
    from launch.preview import print_preview

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
