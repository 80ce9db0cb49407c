"""What Slurm is asked, and what its answers mean, by programs that answer as it does."""

import os
from pathlib import Path

import pytest

from maep.launch.cluster.partition_nodes import read_partition
from maep.launch.cluster.slurm_client import node_addresses, partitions
from maep.launch.job.scontrol import down

# Slurm's commands leave out what a site has hidden (Hidden=YES) unless they are asked for all.
SINFO = """#!/bin/sh
[ "$1" = --all ] || { echo "main*|2|main"; exit; }
case "$*" in
  *%P*) echo "main*|2|main"; echo "secret|3|secret";;
  *%o*) echo "n1"; echo "n2";;
  *%N*) echo "n2 down*";;
esac
"""
SCONTROL = """#!/bin/sh
[ "$1" = --all ] || { echo "Partition secret not found" >&2; exit 1; }
case "$*" in
  *config) echo "SelectType = select/cons_tres";;
  *node) echo "NodeName=n2 CPUEfctv=4 CPUTot=4 RealMemory=1000 Partitions=secret";;
  *partition*) echo "PartitionName=secret MaxCPUsPerNode=UNLIMITED";;
esac
"""


def test_a_partition_that_is_hidden_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs may name it: it exists, its nodes are read, and one of them that is down is noticed."""
    for name, text in (("sinfo", SINFO), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert partitions() == {"main": 2, "secret": 3}
    assert node_addresses() == {"n1", "n2"}
    assert sum(read_partition("secret").kinds.values()) == 1
    assert down(["n2"]) == ["n2"]
