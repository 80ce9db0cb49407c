"""What Slurm is asked, and what its answers mean, by programs that answer as it does."""

import os
from pathlib import Path

import pytest

from maep.launch.cluster.partition_nodes import read_partition
from maep.launch.cluster.slurm_client import fields_of, most_workers, node_addresses, partitions, scontrol
from maep.launch.job.scontrol import down, fields_of_job, slurm

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


@pytest.mark.parametrize(("line", "most"), [("MaxArraySize  = 101", 101), ("MaxArraySize = 0", 1), ("", 1001)])
def test_how_many_workers_an_array_may_have(
    line: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As slurm.conf says, by default 1001; a cluster without arrays takes single jobs."""
    answers(tmp_path, f"MaxJobCount = 7\n{line}\nMaxMemPerCPU = 9\n".encode(), monkeypatch)
    assert most_workers() == most


def test_answers_may_hold_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as why a node is down, in an administrator's Latin-1: for the login node and for the batch script."""
    answers(tmp_path, "NodeName=n1 State=DOWN Reason=L\u00fcfter".encode("latin-1"), monkeypatch)
    assert fields_of(scontrol("show", "node"))["State"] == "DOWN"
    assert (slurm("scontrol", "show", "node") or "").startswith("NodeName=n1 State=DOWN")


def test_a_path_that_looks_like_an_answer_is_none() -> None:
    """The states of a job are its own, whatever its run directory is called."""
    line = "JobId=7 JobState=RUNNING RunTime=00:00:01 Command=/runs/x JobState=FAILED JobId=8/job.sh Power="
    assert fields_of(line)["JobState"] == fields_of_job(line, "7")["JobState"] == "RUNNING"


def answers(directory: Path, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `scontrol` on PATH with this answer to everything."""
    (directory / "answer").write_bytes(answer)
    (directory / "scontrol").write_text(f"#!/bin/sh\nexec cat {directory}/answer\n")
    (directory / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")
