"""A worker of an array is requeued alone, whatever its siblings do, on the real Slurm.

The last worker to start has the array's own id for its SLURM_JOB_ID: asked by that, Slurm means all of them.
"""

import sys
from pathlib import Path

import pytest

from maep.launch.job.attempts import Outcome, read_attempts
from tests.cluster.cluster import Cluster
from tests.tiny import ROOT

WORKERS = 3
# In its first attempt a worker waits for its file, and ends with the exit code in it; in later ones it ends well.
SCRIPT = """#!/bin/bash
cd {root}
worker=$SLURM_ARRAY_TASK_ID
echo $SLURM_JOB_ID > {here}/began-$worker-${{SLURM_RESTART_COUNT:-0}}
code=0
if [ "${{SLURM_RESTART_COUNT:-0}}" = 0 ]; then
  while [ ! -s {here}/go-$worker ]; do sleep 0.1; done
  code=$(cat {here}/go-$worker)
fi
{python} -m maep.launch.job.requeue {here} 3 "$code" ""
exit "$code"
"""


class Workers:
    """An array under way, each of whose workers waits to be told its exit code."""

    def __init__(self, cluster: Cluster, here: Path) -> None:
        self.cluster, self.here = cluster, here
        script = here / "job.sh"
        script.write_text(SCRIPT.format(root=ROOT, here=here, python=sys.executable))
        words = ["--requeue", f"--array=0-{WORKERS - 1}", f"--output={here}/log-%a", "--open-mode=append", str(script)]
        self.array = cluster.run(["sbatch", "--parsable", *words]).stdout.strip()
        cluster.wait_for(lambda: all(self.began(i) for i in range(WORKERS)), 60, "all workers")

    def began(self, worker: int, attempt: int = 0) -> str:
        """The SLURM_JOB_ID of an attempt; "" if it has not begun."""
        path = self.here / f"began-{worker}-{attempt}"
        return path.read_text().strip() if path.exists() else ""

    def end(self, worker: int, code: int) -> None:
        """Let a worker's first attempt end."""
        (self.here / f"go-{worker}").write_text(str(code))

    def wait(self, worker: int, state: str) -> None:
        """Wait until Slurm says this of it."""
        name = f"{self.array}_{worker}"
        self.cluster.wait_for(lambda: self.cluster.job(name).state == state, 60, f"{name} {state}")

    def restarts(self, worker: int) -> int:
        """How often Slurm has requeued it."""
        return self.cluster.job(f"{self.array}_{worker}").restarts

    def outcomes(self, worker: int) -> list[Outcome]:
        """What was decided after each attempt."""
        return [attempt.kind for attempt in read_attempts(self.here / f"{self.array}_{worker}")]


@pytest.mark.parametrize("siblings", ["run", "ended", "cancelled"])
def test_last_worker_is_requeued_alone(cluster: Cluster, tmp_path: Path, siblings: str) -> None:
    """It comes again once, and no sibling does, which run on, have ended, or were cancelled."""
    workers = Workers(cluster, tmp_path)
    [last] = [worker for worker in range(WORKERS) if workers.began(worker) == workers.array]
    others = [worker for worker in range(WORKERS) if worker != last]
    for worker in others:
        if siblings == "ended":
            workers.end(worker, 0)
            workers.wait(worker, "COMPLETED")
        if siblings == "cancelled":
            cluster.run(["scancel", f"{workers.array}_{worker}"])
            workers.wait(worker, "CANCELLED")
    workers.end(last, 140)
    cluster.wait_for(lambda: workers.began(last, 1), 60, "the second attempt")
    workers.wait(last, "COMPLETED")
    if siblings == "run":
        for worker in others:
            assert cluster.job(f"{workers.array}_{worker}").state == "RUNNING"
            workers.end(worker, 0)
            workers.wait(worker, "COMPLETED")
    assert workers.outcomes(last) == [Outcome.STOPPED, Outcome.FINISHED]
    assert [workers.restarts(worker) for worker in others] == [0, 0]
    assert workers.restarts(last) == 1
    assert not any(workers.began(worker, 1) for worker in others)
