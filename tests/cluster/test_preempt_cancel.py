"""A partition that cancels what it preempts: `--wait` notices, and submits the rest again."""

import subprocess
import sys

from maep.launch.cluster.job_records import read_records
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import NewRun
from tests.cluster.runs import TRAINING
from tests.tiny import ROOT, environment


def test_resubmitted_from_outside(new_run: NewRun, cluster: Cluster) -> None:
    """The first job ends as PREEMPTED, a second one goes on from its checkpoint, and every step is there once."""
    run = new_run()
    words = [*run.problem.arguments(run.directory, *TRAINING), "stage=pretrain"]
    asked = ["--wait", "--partition", "cancels", "--nodes", "2", "--gpus-per-node", "0", "--time", "20"]
    command = [sys.executable, "launch/slurm.py", *asked, *words]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        cluster.wait_for(lambda: read_records(run.directory), 60, "the job")
        [run.record] = read_records(run.directory)
        run.reach(25)
        cluster.run(["sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"])
        told, _ = process.communicate(timeout=180)
    assert process.returncode == 0, told
    assert "PreemptMode=CANCEL" in told
    assert "is submitted again" in " ".join(told.split())
    first, second = read_records(run.directory)
    assert cluster.job(first.job).state == "PREEMPTED"
    assert cluster.job(second.job).state == "COMPLETED"
    assert len(run.losses()) == run.settings.pretrain.steps
