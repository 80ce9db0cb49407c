"""Submitted from inside a job: the new one has its own size, memory and id, whatever the outer one was given."""

import shlex
import sys
from pathlib import Path

from maep.launch.cluster.job_records import read_records
from maep.launch.job.attempts import Outcome, read_attempts
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import NewRun
from tests.cluster.runs import ENDED, TRAINING
from tests.tiny import ROOT

# Of another shape than the inner job's, and with variables that srun refuses beside the inner job's own.
OUTER = ["--array=7", "--nodes=1", "--ntasks=3", "--mem-per-cpu=100", "--gres=gpu:1", "--time=10"]


def test_submitted_by_a_worker_of_an_array(new_run: NewRun, cluster: Cluster, tmp_path: Path) -> None:
    """The inner training of two processes on two nodes ends well, and writes its ends under its own name."""
    run = new_run()
    words = [*run.problem.arguments(run.directory, *TRAINING, "pretrain.steps=6"), "stage=pretrain"]
    asked = ["--nodes", "2", "--gpus-per-node", "0", "--time", "20", "--mem-per-task", "600M"]
    command = shlex.join([sys.executable, "launch/slurm.py", *asked, *words])
    environment = {**cluster.environment, "PMI_RANK": "5", "SLURM_HINT": "nomultithread", "MY_SITE": "stays"}
    log = tmp_path / "outer.log"
    script = f"cd {shlex.quote(str(ROOT))} && {command}"
    cluster.run(["sbatch", *OUTER, f"--output={log}", f"--wrap={script}"], env=environment)
    cluster.wait_for(lambda: read_records(run.directory), 90, "the inner job")
    [run.record] = read_records(run.directory)
    cluster.wait_for(lambda: run.state().state in ENDED, 120, f"the inner job's end\n{log.read_text()}")
    assert run.state().state == "COMPLETED", run.log()
    assert run.step() == 6
    assert "ArrayJobId" not in run.state().fields
    [attempt] = read_attempts(run.directory / "jobs" / "pretrain" / "exits" / run.job)
    assert attempt.kind == Outcome.FINISHED
