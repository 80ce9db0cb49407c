"""Workers of the array stages die in the middle of their work, and the results are those of an undisturbed run."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maep.config.schema import Settings
from maep.pipeline.execution import run_pipeline
from maep.storage.documents import CONTENT
from maep.storage.sealed import file_entries
from maep.training.worker import run_training
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import NewRun
from tests.cluster.node import Node
from tests.cluster.runs import ATTEMPT, ClusterRun
from tests.tiny import Problem

CLAIMS = "compute.claim_timeout=5"
ATTACK = ["attack.steps=200", CLAIMS]
EVALUATION = [
    "pretrain.steps=12", "finetune.method=none", "evaluation.images=24", "evaluation.chunk_images=6",
    "evaluation.batch_size=6", "evaluation.adaptive_images=6", "evaluation.attacks=[pgd-20,autoattack-standard]",
    CLAIMS,
]  # fmt: skip


def with_cache(problem: Problem, cache: Path, made: str) -> Problem:
    """The problem with a copy of its cache, in which nothing is made yet of the kind `made`."""
    shutil.copytree(problem.cache, cache, ignore=shutil.ignore_patterns(made))
    return Problem(cache, problem.prepared)


def kill_one_worker(run: ClusterRun, done: Callable[[], int], kill: Callable[[Node, int], None]) -> None:
    """Wait for the first finished unit, kill a worker that is at work then, and wait for the end of all.

    Between two attempts nobody is at work, so for a worker it is waited too.
    """

    def at_work() -> tuple[Node, int] | None:
        ranks = [(node, rank) for node in run.cluster.nodes.values() for rank in node.ranks()]
        return ranks[0] if ranks and done() > 0 else None

    found = run.cluster.wait_for(at_work, ATTEMPT, "a worker at work after the first finished unit")
    assert found is not None
    kill(*found)
    run.finish_array()


def test_attack_worker_loses_power(new_run: NewRun, problem: Problem, tmp_path: Path) -> None:
    """The node of attack workers loses power: the adversarial shards have the bytes of an undisturbed run's."""
    alone, shared = (new_run(*ATTACK, name=name) for name in ("alone", "shared"))
    for run in (alone, shared):
        run.problem = with_cache(problem, tmp_path / f"cache-{run.directory.name}", "adversarial")
    run_pipeline(alone.settings, "attack", no_launch)
    made = shared.problem.cache / "adversarial"
    shared.submit(1, "attack", workers=2)
    kill_one_worker(shared, lambda: len(list(made.rglob("*.attack.json"))), lambda node, _: node.power_off())
    assert finished_files(made) == finished_files(alone.problem.cache / "adversarial")


def finished_files(folder: Path) -> dict[str, Any]:
    """Size and SHA-256 of every file by name, without what a dead worker left unfinished."""
    files = file_entries(folder).items()
    return {name: facts for name, facts in files if not any(part.startswith(".") for part in Path(name).parts)}


@pytest.mark.slow
def test_evaluation_worker_killed(new_run: NewRun, problem: Problem, cluster: Cluster, tmp_path: Path) -> None:
    """SIGKILL of an evaluation worker: every record is that of an undisturbed run."""
    alone = new_run(*EVALUATION, name="alone")
    alone.problem = with_cache(problem, tmp_path / "cache", "attacked")
    run_pipeline(alone.settings, "pretrain", run_training)
    other = with_cache(problem, tmp_path / "other-cache", "attacked")
    shared = ClusterRun(cluster, other, tmp_path / "shared", EVALUATION)
    shutil.copytree(alone.directory, shared.directory)
    run_pipeline(alone.settings, "evaluate", no_launch)
    shared.submit(1, "evaluate", workers=2)
    kill_one_worker(shared, lambda: len(records(shared)), lambda _, rank: os.kill(rank, signal.SIGKILL))
    assert records(shared) == records(alone)


def no_launch(name: str, _settings: Settings) -> None:
    """No stage of these starts processes."""
    pytest.fail(f"{name} was launched")


def records(run: ClusterRun, kind: str = "evaluation") -> dict[str, Any]:
    """The records of an evaluation, or of `certificates`, by file, without how long they took."""
    folder = run.directory / kind
    found = {path: json.loads(path.read_text()) for path in sorted(folder.rglob("chunk-*.json"))}
    return {str(path.relative_to(folder)): without_time(record) for path, record in found.items()}


def without_time(record: Any) -> Any:
    """A record without its seconds, and the digest that covers them."""
    if isinstance(record, dict):
        timeless = {key: value for key, value in record.items() if "seconds" not in key and key != CONTENT}
        return {key: without_time(value) for key, value in timeless.items()}
    return record
