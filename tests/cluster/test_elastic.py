"""A run goes on with another number of nodes: the same order of samples, and losses alike."""

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.conftest import NewRun
from tests.cluster.runs import ClusterRun, assert_same_samples

pytestmark = pytest.mark.slow


def assert_alike(run: ClusterRun, whole: ClusterRun) -> None:
    """The same order of samples, each once an epoch, and every loss within 1e-4 of the undisturbed run's."""
    assert_same_samples(run, whole)
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-4)


def test_four_two_three_four_nodes(new_run: NewRun, undisturbed_on_four: ClusterRun, cluster: Cluster) -> None:
    """Cancelled and submitted again with 2, 3 and 4 nodes; no step is repeated, for each saves when asked to end."""
    run = new_run()
    resumed = []
    for nodes, until in ((4, 20), (2, 42), (3, 64)):
        run.submit(nodes).reach(until)
        cluster.run(["scancel", run.job])
        cluster.wait_for(lambda: run.state().state == "CANCELLED", 60, "the job's end")
        cluster.wait_for(lambda: not cluster.run(["squeue", "--noheader"]).stdout, 60, "free nodes")
        resumed.append(run.step())
    assert run.submit(4).finish().resumed_from() == resumed[-1:]
    assert_alike(run, undisturbed_on_four)


def test_fewer_nodes_when_others_are_missing(
    new_run: NewRun, undisturbed_on_four: ClusterRun, cluster: Cluster
) -> None:
    """`--nodes 4 --min-nodes 2`: when two nodes lose power, the same job goes on with the two that are left."""
    run = new_run().submit(4, min_nodes=2)
    run.reach(25)
    for name in run.nodes()[2:]:
        cluster.nodes[name].power_off()
    run.requeued()
    run.finish()
    assert len(run.nodes()) == 2
    assert_alike(run, undisturbed_on_four)
