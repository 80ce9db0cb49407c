"""One Slurm for all the tests of this folder, and the runs that disturbed ones are compared with."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.packages import why_not
from tests.cluster.runs import ClusterRun
from tests.tiny import Problem

NewRun = Callable[..., ClusterRun]


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """A Slurm of four nodes, which commands find; skips, saying why, where none can be brought up."""
    if reason := why_not():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        cluster = Cluster.up()
        patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        yield cluster
        cluster.down()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The shared cluster with all its nodes idle, and without jobs; what the test left is cleared away after it."""
    yield shared_cluster
    shared_cluster.reset()


@pytest.fixture
def new_run(cluster: Cluster, problem: Problem, tmp_path: Path) -> NewRun:
    """Makes runs with settings of their own, in which the stages before training are finished."""

    def make(*more: str, name: str = "run") -> ClusterRun:
        directory = shutil.copytree(problem.prepared, tmp_path / name)
        return ClusterRun(cluster, problem, Path(directory), list(more))

    return make


@pytest.fixture(scope="session")
def undisturbed(shared_cluster: Cluster, problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> ClusterRun:
    """A run on two nodes that nobody disturbed, finished."""
    directory = shutil.copytree(problem.prepared, tmp_path_factory.mktemp("undisturbed") / "run")
    return ClusterRun(shared_cluster, problem, Path(directory)).submit(2).finish()


@pytest.fixture(scope="session")
def undisturbed_on_four(
    shared_cluster: Cluster, problem: Problem, tmp_path_factory: pytest.TempPathFactory
) -> ClusterRun:
    """The same on four nodes."""
    directory = shutil.copytree(problem.prepared, tmp_path_factory.mktemp("undisturbed") / "run")
    return ClusterRun(shared_cluster, problem, Path(directory)).submit(4).finish()
