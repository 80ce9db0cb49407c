"""A training against the whole, and a certification, disturbed on the cluster: the bits of undisturbed ones."""

import shutil
from pathlib import Path

import pytest

from maep.pipeline.execution import run_pipeline
from maep.training.checkpointing.directory import step_of
from maep.training.worker import run_training
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import NewRun
from tests.cluster.runs import ATTEMPT, SAVE_EVERY, ClusterRun, assert_same, assert_same_samples, read_lines
from tests.cluster.test_training_faults import latest_checkpoint
from tests.cluster.test_worker_faults import CLAIMS, kill_one_worker, no_launch, records
from tests.tiny import Problem

ROBUST = [
    # A budget at which some held-out images are still classified: accuracies of 0 are equal whatever was trained.
    "attack.online=true", "attack.steps=1", "attack.eps=8/255", "attack.step=8/255",
    "pretrain.attacked=whole", "objective.name=robust", "pretrain.mask_ratio=0",
    "pretrain.steps=50", "robust.check_every=20", "robust.check_images=20", "robust.overfit_drop=100",
]  # fmt: skip
CERTIFICATION = [
    "pretrain.steps=12", "finetune.method=none", "certify.sigma=[0.25]", "certify.images=12", "certify.chunk_images=2",
    "certify.first_draws=20", "certify.draws=2000", "certify.attack_radii=[0.25,0.5]", "certify.attack_images=4",
    "certify.attack=pgd-5", "certify.attack_draws=40", CLAIMS,
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed_robust(
    shared_cluster: Cluster, problem: Problem, tmp_path_factory: pytest.TempPathFactory
) -> ClusterRun:
    """A training against the whole on two nodes that nobody disturbed."""
    directory = shutil.copytree(problem.prepared, tmp_path_factory.mktemp("undisturbed-robust") / "run")
    return ClusterRun(shared_cluster, problem, Path(directory), ROBUST).submit(2).finish()


def cancel(run: ClusterRun) -> None:
    """Have a run's job end, and all its nodes free."""
    run.cluster.run(["scancel", run.job])
    told = f"free nodes after job {run.job}"
    run.cluster.wait_for(lambda: not run.cluster.run(["squeue", "--noheader"]).stdout, ATTEMPT, told)


def held_out(run: ClusterRun) -> list[tuple[int, tuple[float, ...]]]:
    """(step, accuracies) on held-out images: of the weights and of the averaged ones attacked, and of those without."""
    lines = read_lines(run.directory / "metrics.jsonl")
    names = [f"held_out_{name}" for name in ("accuracy", "averaged", "clean")]
    return [(line["step"], tuple(line[name] for name in names)) for line in lines if names[0] in line]


def test_robust_training_signalled_and_without_power(
    new_run: NewRun, undisturbed_robust: ClusterRun, cluster: Cluster
) -> None:
    """USR2 in the middle, saved at the very step; then a node loses power: requeued twice, and ends with the same bits
    and the same accuracies on held-out images.
    """
    run = new_run(*ROBUST).submit(2, max_crashes=0)
    run.reach(12)
    cluster.run(["scancel", "--signal=USR2", run.job])
    stopped = run.requeued()
    assert step_of(latest_checkpoint(run)) == stopped
    run.reach(stopped + 13)
    cluster.nodes[run.nodes()[1]].power_off()
    reached = run.requeued(2)
    newest = step_of(latest_checkpoint(run))
    assert run.finish().resumed_from() == [stopped, newest]
    assert 0 <= reached - newest <= 2 * SAVE_EVERY
    assert_same(run, undisturbed_robust)
    assert held_out(run) == held_out(undisturbed_robust)
    assert [step for step, _ in held_out(run)] == [20, 40, 50]
    distinct = {accuracy for _, accuracies in held_out(run) for accuracy in accuracies}
    assert max(distinct) > 0
    assert len(distinct) > 1, "equal accuracies say nothing where all are alike"


@pytest.mark.slow
def test_robust_training_on_four_nodes_then_two(new_run: NewRun, undisturbed_robust: ClusterRun) -> None:
    """Begun on four and gone on with on two: the same samples in the same order, and losses alike.

    As far as the signs of vanishing gradients, which the attack takes of rounded sums, let them.
    """
    run = new_run(*ROBUST).submit(4)
    run.reach(22)
    cancel(run)
    reached = run.step()
    assert run.submit(2).finish().resumed_from() == [reached]
    assert_same_samples(run, undisturbed_robust)
    assert run.losses()[0] == pytest.approx(undisturbed_robust.losses()[0], rel=1e-5)
    assert run.losses() == pytest.approx(undisturbed_robust.losses(), rel=5e-3)
    assert [step for step, _ in held_out(run)] == [20, 40, 50]


@pytest.fixture(scope="module")
def certified(problem: Problem, shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ClusterRun:
    """Certificates by one worker on this machine."""
    directory = shutil.copytree(problem.prepared, tmp_path_factory.mktemp("certified") / "run")
    run = ClusterRun(shared_cluster, problem, Path(directory), CERTIFICATION)
    run_pipeline(run.settings, "pretrain", run_training)
    shutil.copytree(run.directory, run.directory.with_name("trained"))
    run_pipeline(run.settings, "certify", no_launch)
    return run


def trained(certified: ClusterRun, cluster: Cluster, directory: Path) -> ClusterRun:
    """The same run before its certification."""
    shutil.copytree(certified.directory.with_name("trained"), directory)
    return ClusterRun(cluster, certified.problem, directory, CERTIFICATION)


def test_certification_signalled_and_without_power(certified: ClusterRun, cluster: Cluster, tmp_path: Path) -> None:
    """USR2 for all workers of an array, then the node of one loses power: each certificate, and what attacks left
    beside it, is that of a worker left alone.
    """
    run = trained(certified, cluster, tmp_path / "run").submit(1, "certify", workers=2)
    cluster.wait_for(lambda: bool(records(run, "certificates")), ATTEMPT, "the first finished unit")
    cluster.run(["scancel", "--signal=USR2", run.job])
    before = len(records(run, "certificates"))
    kill_one_worker(run, lambda: len(records(run, "certificates")) - before, lambda node, _: node.power_off())
    assert records(run, "certificates") == records(certified, "certificates")
    assert len(records(run, "certificates")) == 6 + 2 + 2


@pytest.mark.slow
def test_certification_by_four_workers_then_two(certified: ClusterRun, cluster: Cluster, tmp_path: Path) -> None:
    """Cancelled with four and gone on with by two: no record is made twice, and all are those of one worker."""
    run = trained(certified, cluster, tmp_path / "run").submit(1, "certify", workers=4)
    cluster.wait_for(lambda: bool(records(run, "certificates")), ATTEMPT, "the first finished unit")
    cancel(run)
    made = {path: path.stat().st_mtime_ns for path in (run.directory / "certificates").rglob("chunk-*.json")}
    assert 0 < len(made) < len(records(certified, "certificates"))
    run.submit(1, "certify", workers=2).finish_array()
    assert records(run, "certificates") == records(certified, "certificates")
    assert {path: path.stat().st_mtime_ns for path in made} == made
