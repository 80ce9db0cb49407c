"""What the batch script asks of Slurms of several versions; srun is a program that takes what each of them takes."""

from pathlib import Path

import pytest

from maep.launch.job.scontrol import unreachable

SRUN = """#!/bin/sh
[ "$1" = --version ] && echo "slurm {version}" && exit
for word; do [ "$word" = --overlap ] && has=yes; done
[ "$has" = {has} ] || {{ echo "srun: unrecognized option '--overlap'" >&2; exit 1; }}
"""


@pytest.mark.parametrize(("version", "has"), [
    ("19.05.8", ""), ("20.02.7-1", ""), ("20.11.0", "yes"), ("22.05.8", "yes"), ("24.11.0-rc1", "yes"), ("?", "yes"),
])  # fmt: skip
def test_living_nodes_answer_every_slurm(
    version: str, has: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 20.11 srun knows no --overlap, and steps need none; since then they would wait for the ranks' step.

    A node that is taken for dead is waited for, for a quarter of an hour.
    """
    program = tmp_path / "srun"
    program.write_text(SRUN.format(version=version, has=has or '""'))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert unreachable(["n1", "n2", "n3"]) == []
