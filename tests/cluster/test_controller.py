"""What a batch script finds out about its nodes, on the real Slurm."""

import sys
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.tiny import ROOT

ASK = "from maep.launch.job import scontrol; print(scontrol.unreachable(scontrol.job_nodes()), flush=True)"
SCRIPT = """#!/bin/bash
cd {root} && {python} -c "{ask}"
while [ ! -e {go} ]; do sleep 0.1; done
{python} -c "{ask}"
"""


def test_dead_node_is_found_before_slurm_declares_it(cluster: Cluster, tmp_path: Path) -> None:
    """Nodes that live answer; one without power does not, while Slurm still says that the job runs."""
    script, output, go = (tmp_path / name for name in ("job.sh", "output", "go"))
    script.write_text(SCRIPT.format(root=ROOT, python=sys.executable, ask=ASK, go=go))
    cluster.run(["sbatch", "--nodes=2", "--ntasks-per-node=1", "--no-requeue", f"--output={output}", str(script)])

    def answers() -> list[str]:
        lines = output.read_text().splitlines() if output.exists() else []
        return [line for line in lines if line.startswith("[")]

    cluster.wait_for(answers, 60, "the answer of living nodes")
    cluster.nodes["n2"].power_off()
    go.touch()
    cluster.wait_for(lambda: len(answers()) == 2, 60, "the answer of a dead one")
    assert answers() == ["[]", "['n2']"]
