"""A training on the cluster is disturbed in every way that we know, and ends with the bits of an undisturbed one."""

import os
import signal
import time
from pathlib import Path

import pytest

from maep.launch.cluster.job_records import exits_folder
from maep.launch.job.attempts import Outcome, read_exits
from maep.training.checkpointing.directory import newest_whole, step_of
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import NewRun
from tests.cluster.runs import ATTEMPT, SAVE_EVERY, ClusterRun, assert_same

NODES = 2
MIDDLE, LAST_SAVE = 25, 80


def goes_on(run: ClusterRun, undisturbed: ClusterRun, *, repeats: int) -> None:
    """The run is requeued, goes on from the newest whole checkpoint, and ends as if nothing had been.

    repeats: at most so many steps. A checkpoint counts from its commit, up to an interval after its step.
    """
    reached = run.requeued()
    newest = latest_checkpoint(run)
    resumed, *_ = run.finish().resumed_from()
    assert resumed == step_of(newest)
    assert 0 <= reached - resumed <= repeats
    assert_same(run, undisturbed)


def test_user_signal(new_run: NewRun, undisturbed: ClusterRun, cluster: Cluster) -> None:
    """`scancel --signal=USR2`: saved at the very step, requeued by the job itself, no step repeated."""
    run = new_run().submit(NODES)
    run.reach(MIDDLE)
    cluster.run(["scancel", "--signal=USR2", run.job])
    goes_on(run, undisturbed, repeats=0)


@pytest.mark.parametrize("user_signal", [True, False])
def test_preempted_by_a_higher_partition(
    new_run: NewRun, undisturbed: ClusterRun, cluster: Cluster, user_signal: bool
) -> None:
    """A job of partition `high` takes the nodes; told by the job's own signal, or by SIGTERM alone."""
    cluster.set_user_signal(user_signal)
    run = new_run().submit(NODES)
    run.reach(MIDDLE)
    cluster.run(["sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"])
    goes_on(run, undisturbed, repeats=0)


@pytest.mark.slow
def test_time_limit(new_run: NewRun) -> None:
    """A job that its time limit ends has saved before, and goes on in another attempt."""
    long = ["pretrain.steps=1500", "pretrain.save_every=500", "compute.grace=5"]
    whole = new_run(*long, name="whole").submit(NODES).finish()
    run = new_run(*long).submit(NODES, minutes=1).finish()
    assert run.state().restarts >= 1
    assert_same(run, whole)


def test_node_set_down(new_run: NewRun, undisturbed: ClusterRun, cluster: Cluster) -> None:
    """`scontrol update … state=down`: requeued by Slurm; at most the steps since the last checkpoint are repeated."""
    run = new_run().submit(NODES)
    run.reach(MIDDLE)
    cluster.set_state(run.nodes()[1], "down")
    goes_on(run, undisturbed, repeats=2 * SAVE_EVERY)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_power_loss_in_training(new_run: NewRun, undisturbed: ClusterRun, cluster: Cluster, rank: int) -> None:
    """A node loses power in the middle of training: the first one, which runs the batch script, or the last.

    No crash is allowed here, so a lost node must not count as one.
    """
    run = new_run().submit(NODES, max_crashes=0)
    run.reach(MIDDLE)
    cluster.nodes[run.nodes()[rank]].power_off()
    goes_on(run, undisturbed, repeats=2 * SAVE_EVERY)


def test_power_loss_in_a_checkpoint_write(new_run: NewRun, undisturbed: ClusterRun, cluster: Cluster) -> None:
    """A node loses power while a checkpoint is half written; that checkpoint is not used."""
    run = new_run().submit(NODES, max_crashes=0)
    run.reach(SAVE_EVERY + 2)
    node = cluster.nodes[run.nodes()[1]]
    stop_in_a_save(run, node.ranks()[0])
    node.power_off()
    goes_on(run, undisturbed, repeats=2 * SAVE_EVERY)


def stop_in_a_save(run: ClusterRun, rank: int) -> None:
    """SIGSTOP a rank while a checkpoint is being written."""
    folder = run.directory / "checkpoints"
    while run.step() < LAST_SAVE:
        for _ in range(200):
            for name in [name for name in os.listdir(folder) if name.startswith(".tmp-")] if folder.exists() else []:
                os.kill(rank, signal.SIGSTOP)
                if (folder / name).exists():
                    return
                os.kill(rank, signal.SIGCONT)
    raise AssertionError("no checkpoint was caught half written")


@pytest.mark.slow
def test_power_loss_in_an_all_reduce(new_run: NewRun, undisturbed_on_four: ClusterRun, cluster: Cluster) -> None:
    """One of four ranks is held back, so that the others are in an all-reduce with it, when another loses power."""
    run = new_run().submit(4)
    run.reach(MIDDLE)
    held, lost = (cluster.nodes[name] for name in run.nodes()[1:3])
    [rank] = held.ranks()
    os.kill(rank, signal.SIGSTOP)
    before = wait_for_standstill(run)
    lost.power_off()
    os.kill(rank, signal.SIGCONT)
    assert run.requeued() == before
    lost.power_on()
    goes_on(run, undisturbed_on_four, repeats=2 * SAVE_EVERY)


def wait_for_standstill(run: ClusterRun) -> int:
    """The step at which a run stays for a second."""
    step = -1
    while step != run.step():
        step = run.step()
        time.sleep(1)
    return step


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.slow
def test_frozen_node(new_run: NewRun, undisturbed: ClusterRun, cluster: Cluster, rank: int) -> None:
    """A node stops answering: the job goes on without it, and what the node does when it wakes up harms nothing."""
    run = new_run().submit(NODES)
    run.reach(MIDDLE)
    node = cluster.nodes[run.nodes()[rank]]
    node.freeze()
    reached = run.requeued(frozen=node.name)
    newest = latest_checkpoint(run)
    run.reach(reached + 5)
    node.thaw()
    resumed, *_ = run.finish().resumed_from()
    assert resumed == step_of(newest)
    assert 0 <= reached - resumed <= 2 * SAVE_EVERY
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_hanging_rank(new_run: NewRun, undisturbed: ClusterRun, cluster: Cluster) -> None:
    """A rank hangs though its node is well: the other one writes down whom it missed, and the job is requeued."""
    run = new_run("compute.stall_timeout=20").submit(NODES)
    run.reach(MIDDLE)
    [process] = cluster.nodes[run.nodes()[1]].ranks()
    os.kill(process, signal.SIGSTOP)
    goes_on(run, undisturbed, repeats=2 * SAVE_EVERY)
    [(_, first), *_] = read_exits(exits_folder(run.directory, "pretrain") / run.job, attempt=0)
    assert (first.rank, first.kind) == (0, Outcome.PEER_LOST)
    assert "rank 1 on node" in first.error
    assert "no sign of life" in first.error


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_rank_killed(new_run: NewRun, undisturbed: ClusterRun, cluster: Cluster, rank: int) -> None:
    """SIGKILL of one rank, as by the kernel when memory runs out: the others end, and the job is requeued."""
    run = new_run().submit(NODES)
    run.reach(MIDDLE)
    [process] = cluster.nodes[run.nodes()[rank]].ranks()
    os.kill(process, signal.SIGKILL)
    goes_on(run, undisturbed, repeats=2 * SAVE_EVERY)


@pytest.mark.parametrize("truncated", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_newest_checkpoint_damaged(new_run: NewRun, undisturbed: ClusterRun, cluster: Cluster, truncated: bool) -> None:
    """A byte flipped, or a file cut short, in the newest checkpoint: told by name, and the one before is used."""
    run = new_run().submit(NODES)
    run.reach(MIDDLE)
    cluster.run(["scancel", "--signal=USR2", run.job])
    run.requeued()
    damaged = next(latest_checkpoint(run).glob("*.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content[:-1] if truncated else content)
    goes_on(run, undisturbed, repeats=2 * SAVE_EVERY)
    assert str(damaged) in run.log()


def test_disk_full_in_a_save(new_run: NewRun, undisturbed: ClusterRun, cluster: Cluster) -> None:
    """No room for the third checkpoint: told in one line, the second is untouched, and with more room it goes on."""
    size = sum(path.stat().st_size for path in latest_checkpoint(undisturbed).iterdir())
    run = new_run()
    with cluster.small_disk(run.directory / "checkpoints", int(2.5 * size)) as seen:
        run.submit(NODES)
        cluster.wait_for(lambda: run.state().state == "FAILED", ATTEMPT, "the end of the job")
        assert "No space left on device" in run.log()
        whole = newest_whole(seen)
        assert whole is not None
        cluster.grow_disk(run.directory / "checkpoints", 10 * size)
        assert run.submit(NODES).finish().resumed_from() == [step_of(whole)]
    assert_same(run, undisturbed)


def latest_checkpoint(run: ClusterRun) -> Path:
    """The newest whole checkpoint of a run."""
    found = newest_whole(run.directory / "checkpoints")
    assert found is not None
    return found
