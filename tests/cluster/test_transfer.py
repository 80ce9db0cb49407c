"""A purifier from elsewhere judged on the cluster, by tiles: `launch/slurm.py stage=evaluate purifier=RUN`."""

import subprocess
import sys

import pytest

from maep.pipeline.execution import run_pipeline
from maep.training.worker import run_training
from tests.cluster.conftest import NewRun
from tests.cluster.runs import ClusterRun
from tests.cluster.test_worker_faults import no_launch, records
from tests.pipeline.test_transfer import JUDGED, TRAINED
from tests.tiny import ROOT, environment


@pytest.mark.slow
def test_judged_on_the_cluster(new_run: NewRun) -> None:
    """One command submits all that is needed, the report too; two workers leave the records of one process."""
    elsewhere = new_run(*TRAINED, name="elsewhere")
    run_pipeline(elsewhere.settings, "pretrain", run_training)
    cluster, problem, place = elsewhere.cluster, elsewhere.problem, elsewhere.directory.parent
    shared, alone = (
        ClusterRun(cluster, problem, place / name, [*JUDGED, f"purifier={elsewhere.directory}"])
        for name in ("shared", "alone")
    )
    words = [*problem.arguments(shared.directory, *shared.more), "stage=evaluate", "--workers", "2", "--time", "20"]
    command = [sys.executable, "launch/slurm.py", "--wait", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (shared.directory / "report.json").is_file()
    assert not (shared.directory / "checkpoints").exists()
    run_pipeline(alone.settings, "evaluate", no_launch)
    assert records(shared) == records(alone)
    assert records(shared)
