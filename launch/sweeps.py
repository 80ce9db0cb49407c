"""Run the points of a sweep: on this machine, or as one worker of an array.

`python launch/local.py cfg=ablation/table15 --scale cpu [--only 0,3-5]`
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from maep.ablation.run import parse_only, run_points
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
    only = parse_only(namespace.only, len(study.points))
    said: list[bool] = []
    started = time.time()
    try:
        code = stopped_code(lambda: said.append(run_points(study.points, launch, only)))
    finally:
        _write(study, time.time() - started)
    return code or int(not said[0])


def work_on_points(directory: Path) -> None:
    """What a worker of the array does: take points until none is left for it, then write the table as it stands."""
    study, command = read_study(directory)
    started = time.time()
    try:
        run_points(study.points, run_training)
    finally:
        write_summary(study.sweep, study.points, study.directory, command, time.time() - started)


def _write(study: Study, seconds: float) -> None:
    command = ["python", *sys.argv]
    summary = write_summary(study.sweep, study.points, study.directory, command, seconds)
    print((study.directory / "table.md").read_text())
    for point in summary["points"]:
        if point["state"] == "failed":
            say(f"{' · '.join(point['names'])}, seed {point['seed']}: failed: {point['reason']}")
    say(f"{study.directory / SUMMARY}; again: {shlex.join(command)}")
