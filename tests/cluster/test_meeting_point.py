"""Ranks meet where no name server knows Slurm's names of the nodes, on the real Slurm."""

import sys
from pathlib import Path

from maep.launch.submission.batch_script import ADDRESS
from tests.cluster.cluster import Cluster
from tests.tiny import ROOT

JOIN = """\
import os, socket
from submitit import JobEnvironment
from maep.config.load import load_settings
from maep.launch.rank.environment import rank_environment
from maep.launch.rank.meeting_point import meeting_point
from maep.training.distributed.world import join_world
slurm = JobEnvironment()
address = meeting_point(slurm.hostnames)
os.environ |= rank_environment(slurm.global_rank, slurm.num_tasks, slurm.local_rank, address, 21999)
compute = load_settings("digits", ["compute.join_timeout=100", "compute.device=cpu"]).compute
print(slurm.hostnames[0], "at", address, join_world(compute, slurm.hostnames).size, "ranks", flush=True)
"""
SCRIPT = """#!/bin/bash
export PYTHONPATH={root} SUBMITIT_EXECUTOR=slurm
{address}
srun {python} {join}
"""


def test_ranks_meet_where_names_are_unknown(cluster: Cluster, tmp_path: Path) -> None:
    """At the address that slurm.conf has of the first node."""
    hosts = cluster.configuration.directory / "etc" / "hosts"
    before = hosts.read_text()
    script, join, output = (tmp_path / name for name in ("job.sh", "join.py", "output"))
    join.write_text(JOIN)
    script.write_text(SCRIPT.format(root=ROOT, address=ADDRESS, python=sys.executable, join=join))
    try:
        hosts.write_text("127.0.0.1 localhost\n")  # in place, as every node has this very file mounted
        cluster.run(["sbatch", "--nodes=2", "--ntasks-per-node=1", "--no-requeue", f"--output={output}", str(script)])
        cluster.wait_for(lambda: output.exists() and output.read_text().count(" ranks") == 2, 180, "both ranks")
    finally:
        hosts.write_text(before)
    assert output.read_text().splitlines().count("n1 at 127.0.0.1 2 ranks") == 2
