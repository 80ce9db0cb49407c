"""The harness itself: a real Slurm that runs jobs, loses nodes, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.waiting import wait_until
from tests.tiny import ROOT

UP = "from tests.cluster.cluster import Cluster; c = Cluster.up(); print(c.number, flush=True); input()"


def submit(cluster: Cluster, *words: str) -> str:
    """The id of a job that runs the last word as a shell command."""
    *options, command = words
    output = "--output=/dev/null"
    return cluster.run(["sbatch", "--parsable", output, *options, f"--wrap={command}"]).stdout.strip()


def test_job_runs_on_four_nodes(cluster: Cluster) -> None:
    """A job of four tasks runs on four nodes that call themselves n1 to n4, and its record outlives it."""
    assert sorted(cluster.run(["srun", "--nodes=4", "hostname"]).stdout.split()) == ["n1", "n2", "n3", "n4"]
    number = submit(cluster, "--nodes=4", "srun hostname")
    cluster.wait_for(lambda: cluster.job(number).state == "COMPLETED", 30, "the job")
    assert cluster.job(number).nodes == "n[1-4]"
    asked = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=State", "-j", number]
    cluster.wait_for(lambda: cluster.run(asked).stdout.strip() == "COMPLETED", 30, "its record in the accounting")


def test_power_off_loses_the_job_and_slurm_requeues_it(cluster: Cluster) -> None:
    """A node without power takes its processes with it; its job runs again, on a node that is left."""
    number = submit(cluster, "--requeue", "sleep 300")
    cluster.wait_for(lambda: cluster.job(number).state == "RUNNING", 30, "the job")
    lost = cluster.job(number).nodes
    cluster.nodes[lost].power_off()
    assert not cluster.nodes[lost].processes()
    cluster.set_state(lost, "down")
    cluster.wait_for(lambda: cluster.job(number).restarts == 1, 30, "the requeue")
    cluster.wait_for(lambda: cluster.job(number).state == "RUNNING", 60, "the second attempt")
    assert cluster.job(number).nodes != lost


def test_frozen_node_goes_on(cluster: Cluster) -> None:
    """A frozen node's job makes no progress until it is thawed."""
    number = submit(cluster, "--nodelist=n2", "sleep 2")
    cluster.wait_for(lambda: cluster.job(number).state == "RUNNING", 30, "the job")
    cluster.nodes["n2"].freeze()
    time.sleep(4)
    assert cluster.job(number).state == "RUNNING"
    cluster.nodes["n2"].thaw()
    cluster.wait_for(lambda: cluster.job(number).state == "COMPLETED", 30, "the job")


@pytest.mark.parametrize("enabled", [True, False])
def test_user_signal_before_preemption_can_be_switched(cluster: Cluster, enabled: bool) -> None:
    """The setting reaches the controller."""
    cluster.set_user_signal(enabled)
    shown = cluster.run(["scontrol", "show", "config"]).stdout
    assert ("preempt_send_user_signal" in shown) == enabled


def test_no_process_outlives_a_killed_owner(shared_cluster: Cluster) -> None:
    """A second cluster comes up beside the first; SIGKILL to its owner ends every process of it, and only of it."""
    command = [sys.executable, "-c", UP]
    owner = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    second = Cluster(int(owner.stdout.readline()))
    assert second.number != shared_cluster.number
    assert len(second.processes()) > 8
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    wait_until(lambda: not second.processes(), 10, "the second cluster to end")
    assert set(shared_cluster.states().values()) == {"IDLE"}
