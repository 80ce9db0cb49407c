"""Measure recovery and scaling: `python -m tests.cluster.measure`; writes tests/reports/cluster.json.

Recovery: on the Slurm of this folder, a training on two nodes is told to stop, and loses a node's power; from there to
its first new step, Slurm's own share apart. Scaling: 1, 2 and 4 processes that share this machine's cores out, and
what communication costs them: the same processes without each other are that much faster.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.data.order import batch_at
from maep.evaluation.reporting.provenance import environment
from maep.pipeline.execution import run_pipeline
from maep.runtime.errors import fail
from maep.storage.atomic import write_json
from tests.cluster.cluster import Cluster
from tests.cluster.runs import SAVE_EVERY, ClusterRun, read_lines
from tests.tiny import ROOT, TINY, Problem
from tests.tiny import environment as process_environment

REPORT = ROOT / "tests" / "reports" / "cluster.json"
REPEATS, NODES, STEPS = 3, 2, 900
PROCESSES, SCALING_STEPS, BATCH = (1, 2, 4), 60, 64
WARM = 20
DATA = [word for word in TINY if not word.startswith(("model.", "pretrain.", "compute.threads"))]


def prepare(base: Path) -> Problem:
    """The tiny problem's shards, classifier and pairs."""
    problem = Problem(base / "cache", base / "prepared")
    settings = load_settings("digits", problem.arguments(problem.prepared)[1:])
    for stage in ("shards", "classifier", "attack"):
        run_pipeline(settings, stage, lambda name, _: fail(f"{name}: not prepared here"))
    return problem


# --- recovery ---


def ranks(cluster: Cluster) -> int:
    """How many training processes there are."""
    return sum(len(node.ranks()) for node in cluster.nodes.values())


def recover(run: ClusterRun, disturb: Callable[[], object]) -> dict[str, float]:
    """Disturb a training in its middle; seconds of each part of the recovery, and the steps repeated."""
    cluster, resumes = run.cluster, len(run.resumed_from())
    run.advance(SAVE_EVERY + SAVE_EVERY // 2)
    began = time.monotonic()
    disturb()
    cluster.wait_for(lambda: not ranks(cluster), 180, "the end of the attempt", every=0.02)
    ended, reached = time.monotonic(), run.step()
    cluster.wait_for(lambda: ranks(cluster) == NODES, 180, "the next attempt", every=0.02)
    started = time.monotonic()
    cluster.wait_for(lambda: len(run.resumed_from()) > resumes, 180, "the resume", every=0.02)
    resumed = run.resumed_from()[-1]
    cluster.wait_for(lambda: run.step() == resumed + 1 or run.step() > reached, 180, "a new step", every=0.002)
    stepped = time.monotonic()
    cluster.repair()
    return {
        "seconds": stepped - began, "until_all_ended": ended - began, "slurm_seconds": started - ended,
        "start_seconds": stepped - started, "steps_repeated": reached - resumed,
    }  # fmt: skip


def recovery(problem: Problem, base: Path, cluster: Cluster) -> list[dict[str, Any]]:
    """Medians over `REPEATS` signals and as many power losses of one run, and its samples counted at the end."""
    directory = Path(shutil.copytree(problem.prepared, base / "recovery"))
    run = ClusterRun(cluster, problem, directory, [f"pretrain.steps={STEPS}"]).submit(NODES, max_crashes=100)
    disturbances: dict[str, Callable[[], object]] = {
        "signal": lambda: cluster.run(["scancel", "--signal=USR2", run.job]),
        "power loss": lambda: cluster.nodes[run.nodes()[-1]].power_off(),
    }
    rows = []
    for name, disturb in disturbances.items():
        seen = [recover(run, disturb) for _ in range(REPEATS)]
        medians = {key: statistics.median(one[key] for one in seen) for key in seen[0]}
        worst = max(one["steps_repeated"] for one in seen)
        rows.append({"after": name, "times": REPEATS, **medians, "most_steps_repeated": worst})
        print(rows[-1], flush=True)
    run.finish()
    expected, found = expected_samples(run.settings), run.samples()
    lost, again = len(set(expected) - set(found)), len(found) - len(set(found))
    return [{**row, "samples_lost": lost, "samples_repeated": again, "order_kept": found == expected} for row in rows]


def expected_samples(settings: Settings) -> list[tuple[int, int, int]]:
    """(step, epoch, index) of what a run consumes, by the order of samples alone."""
    size, count = settings.pretrain.batch_size, settings.data.train_limit
    assert count
    steps = range(settings.pretrain.steps or 0)
    return [(step + 1, *key) for step in steps for key in batch_at(step * size, size, count, settings.run.seed)]


# --- scaling ---


def start(problem: Problem, directory: Path, processes: int, threads: int, batch: int) -> subprocess.Popen[bytes]:
    """Start a training of cfg=digits's own model on some processes of this machine."""
    words = [
        f"run.cache={problem.cache}", f"run.dir={directory}", f"pretrain.steps={SCALING_STEPS}", "pretrain.log_every=1",
        f"pretrain.batch_size={batch}", f"compute.threads={threads}", "pretrain.save_every=1000", "stage=pretrain",
    ]  # fmt: skip
    command = [sys.executable, "launch/local.py", "--nproc", str(processes), "cfg=digits", *DATA, *words]
    return subprocess.Popen(command, cwd=ROOT, env=process_environment(), stdout=subprocess.DEVNULL)


def step_seconds(problem: Problem, base: Path, jobs: int, processes: int, batch: int) -> float:
    """Median seconds a step of `jobs` trainings at the same time, of so many processes each."""
    threads = max(1, (os.cpu_count() or 1) // (jobs * processes))
    places = [base / f"scaling-{jobs}-{processes}-{number}" for number in range(jobs)]
    for place in places:
        shutil.copytree(problem.prepared, place)
    running = [start(problem, place, processes, threads, batch) for place in places]
    if any(process.wait() for process in running):
        fail(f"scaling: a training of {processes} processes failed")
    lines = [line for place in places for line in read_lines(place / "metrics.jsonl")[WARM:]]
    return statistics.median(line["step_seconds"] for line in lines)


def scaling(problem: Problem, base: Path) -> list[dict[str, Any]]:
    """Images a second of the global batch, and communication's share of a step."""
    rows = []
    for processes in PROCESSES:
        together = step_seconds(problem, base, 1, processes, BATCH)
        apart = step_seconds(problem, base, processes, 1, BATCH // processes) if processes > 1 else together
        share = max(0.0, 1 - apart / together)
        rows.append({"processes": processes, "images_per_second": BATCH / together, "communication_share": share})
        print(rows[-1], flush=True)
    return rows


def main() -> int:
    """Measure, print, write the report."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        problem = prepare(base)
        cluster = Cluster.up()
        os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
        try:
            recovered = recovery(problem, base, cluster)
        finally:
            cluster.down()
        scaled = scaling(problem, base)
    command = environment(["-m", "tests.cluster.measure"])
    facts = {"cores": os.cpu_count(), "nodes": NODES, "save_every": SAVE_EVERY, "batch": BATCH}
    seed = load_settings("digits").run.seed
    report = {"schema": 1, "environment": command, "seed": seed, **facts, "recovery": recovered, "scaling": scaled}
    write_json(REPORT, report)
    print(REPORT.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
