"""What is decided after a life of a job, and the script that does it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maep.launch.job.attempts import CRASHED, FINAL, LOST, NODE, STOPPED, TAKEN, WELL
from maep.launch.job.requeue import decide
from maep.runtime.exits import ExitCode
from tests.tiny import ROOT


@pytest.mark.parametrize(
    ("code", "state", "kinds", "crashes", "down", "requeue", "kind"),
    [
        (0, "", [], 0, [], False, WELL),
        (140, "RUNNING", [STOPPED] * 4, 0, [], True, STOPPED),
        (143, "RUNNING", [], 99, [], True, STOPPED),  # stopped before it had begun
        (140, "TIMEOUT", [STOPPED], 0, [], True, STOPPED),
        (143, "COMPLETING", [STOPPED] * 4, 0, [], False, TAKEN),  # scancel
        (137, "NODE_FAIL", [LOST], 0, [], False, TAKEN),
        (2, "RUNNING", [FINAL, LOST], 0, [], False, FINAL),
        (1, "RUNNING", [CRASHED, LOST], 0, [], True, CRASHED),
        (1, "RUNNING", [CRASHED, LOST], 3, [], False, CRASHED),
        (143, "RUNNING", [CRASHED, STOPPED], 0, [], True, CRASHED),  # one failed, srun ended the others
        (137, "RUNNING", [], 2, [], True, CRASHED),  # killed without a word
        (137, "RUNNING", [LOST], 99, ["n3"], True, NODE),
        (3, "", [LOST], 0, [], True, CRASHED),  # Slurm does not answer
        (ExitCode.RUN_UNSEEN, "RUNNING", [], 0, [], False, FINAL),
    ],
)
def test_decisions(
    code: int, state: str, kinds: list[str], crashes: int, down: list[str], requeue: bool, kind: str
) -> None:
    """Stops and lost nodes begin again without limit, crashes three times, bad input and cancelled jobs never."""
    decision = decide(code, state, kinds, crashes, 3, down)
    assert (decision.requeue, decision.kind) == (requeue, kind)


def run(directory: Path, *words: str, life: int = 0, job: str = "7") -> subprocess.CompletedProcess[str]:
    """The script as a batch script calls it, on a machine without Slurm."""
    environment = {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(life), "PYTHONPATH": str(ROOT), "PATH": "/nowhere"}
    command = [sys.executable, "-m", "maep.launch.job.requeue", str(directory), "3", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_script_writes_down_what_it_decides(tmp_path: Path) -> None:
    """A good end, and a node that does not see the run directory, named by the batch script."""
    assert run(tmp_path, "0", "").returncode == 0
    told = run(tmp_path, str(ExitCode.RUN_UNSEEN), "node n3 does not see /runs/x", life=1).stderr
    lives = [json.loads(line) for line in (tmp_path / "7" / "lives.jsonl").read_text().splitlines()]
    assert [(life["life"], life["kind"], life["requeued"]) for life in lives] == [(0, WELL, False), (1, FINAL, False)]
    assert lives[1]["reason"] == "node n3 does not see /runs/x"
    assert "does not begin again: node n3" in told


def test_script_needs_only_the_standard_library(tmp_path: Path) -> None:
    """It starts under an interpreter that finds no installed package: seconds may be all that is left."""
    words = [sys.executable, "-S", "-m", "maep.launch.job.requeue", str(tmp_path), "3", "0", ""]
    environment = {"SLURM_JOB_ID": "7", "PYTHONPATH": str(ROOT)}
    assert subprocess.run(words, env=environment, check=False).returncode == 0


def test_workers_of_an_array_have_their_own_ends(tmp_path: Path) -> None:
    """The directory is the array's id and the worker's number, not Slurm's internal one."""
    environment = {
        "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "PYTHONPATH": str(ROOT),
        "PATH": os.environ["PATH"],
    }  # fmt: skip
    words = [sys.executable, "-m", "maep.launch.job.requeue", str(tmp_path), "3", "0", ""]
    subprocess.run(words, env=environment, check=True)
    assert (tmp_path / "7_2" / "lives.jsonl").is_file()
