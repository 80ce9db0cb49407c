"""A run that is killed again and again, at random moments in random ways."""

import os
import random
import signal
import time

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.conftest import NewRun
from tests.cluster.runs import ClusterRun, assert_same

NODES = 2
STARTUP = 10.0


def power_loss(run: ClusterRun, cluster: Cluster, node: str) -> None:
    """All processes of a node at once; it comes back when Slurm has noticed."""
    cluster.nodes[node].power_off()


def node_down(run: ClusterRun, cluster: Cluster, node: str) -> None:
    """An administrator takes a node away."""
    cluster.set_state(node, "down")


def rank_killed(run: ClusterRun, cluster: Cluster, node: str) -> None:
    """One process of the training."""
    os.kill(cluster.nodes[node].ranks()[0], signal.SIGKILL)


def asked_to_stop(run: ClusterRun, cluster: Cluster, node: str) -> None:
    """The user's signal."""
    cluster.run(["scancel", "--signal=USR2", run.job])


def preempted(run: ClusterRun, cluster: Cluster, node: str) -> None:
    """A job of a higher partition takes all nodes."""
    cluster.run(["sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true"])


KILLS = (power_loss, node_down, rank_killed, asked_to_stop, preempted)


@pytest.mark.slow
def test_random_kills(new_run: NewRun, cluster: Cluster, request: pytest.FixtureRequest) -> None:
    """Killed 20 times (--kills) by a schedule whose seed is printed (--seed): the bits of an undisturbed run."""
    kills = request.config.getoption("--kills")
    seed = request.config.getoption("--seed") or random.SystemRandom().randrange(10**6)
    print(f"random kills: --seed {seed} --kills {kills}")
    rng = random.Random(seed)
    long = [f"pretrain.steps={40 * kills}"]
    whole = new_run(*long, name="whole").submit(NODES).finish()
    run = new_run(*long).submit(NODES, max_crashes=kills)
    for _ in range(kills):
        restarts = run.state().restarts
        kill_once(run, cluster, rng)
        run.requeued(restarts + 1)
        cluster.repair()
    assert_same(run.finish(), whole)


def kill_once(run: ClusterRun, cluster: Cluster, rng: random.Random) -> None:
    """Wait for a random moment, in the start-up or some steps later, and kill in a random way."""
    cluster.wait_for(
        lambda: sum(len(node.ranks()) for node in cluster.nodes.values()) == NODES, 180, "the next attempt"
    )
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, STARTUP))
    else:
        run.advance(rng.randint(1, 25))
    rng.choice(KILLS)(run, cluster, rng.choice(run.nodes()))
