"""One Slurm for all the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.packages import why_not


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """A Slurm of four nodes; skips, saying why, where none can be brought up."""
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The shared cluster with all its nodes idle, and without jobs; what the test left is cleared away after it."""
    yield shared_cluster
    shared_cluster.reset()
