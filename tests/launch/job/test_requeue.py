"""What is decided after an attempt of a job, and the script that does it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maep.launch.job.attempts import Outcome, read_attempts, read_exits
from maep.launch.job.requeue import decide, fruitless_step
from maep.launch.job.scontrol import fields_of_job
from maep.runtime.exits import ExitCode
from tests.tiny import ROOT


@pytest.mark.parametrize(
    ("code", "state", "kinds", "crashes", "down", "requeue", "kind"),
    [
        (0, "", [], 0, [], False, Outcome.FINISHED),
        (140, "RUNNING", [Outcome.STOPPED] * 4, 0, [], True, Outcome.STOPPED),
        (143, "RUNNING", [], 99, [], True, Outcome.STOPPED),  # stopped before it had begun
        (140, "TIMEOUT", [Outcome.STOPPED], 0, [], True, Outcome.STOPPED),
        (143, "COMPLETING", [Outcome.STOPPED] * 4, 0, [], False, Outcome.TAKEN_BY_SLURM),  # scancel
        (137, "NODE_FAIL", [Outcome.PEER_LOST], 0, [], False, Outcome.TAKEN_BY_SLURM),
        (2, "RUNNING", [Outcome.FINAL, Outcome.PEER_LOST], 0, [], False, Outcome.FINAL),
        (1, "RUNNING", [Outcome.CRASHED, Outcome.PEER_LOST], 0, [], True, Outcome.CRASHED),
        (1, "RUNNING", [Outcome.CRASHED, Outcome.PEER_LOST], 3, [], False, Outcome.CRASHED),
        (
            143,
            "RUNNING",
            [Outcome.CRASHED, Outcome.STOPPED],
            0,
            [],
            True,
            Outcome.CRASHED,
        ),  # one failed, srun ended the others
        (137, "RUNNING", [], 2, [], True, Outcome.CRASHED),  # killed without a word
        (137, "RUNNING", [Outcome.PEER_LOST], 99, ["n3"], True, Outcome.NODE_LOST),
        (3, "", [Outcome.PEER_LOST], 0, [], True, Outcome.CRASHED),  # Slurm does not answer
        (ExitCode.RUN_UNSEEN, "RUNNING", [], 0, [], False, Outcome.FINAL),
    ],
)
def test_decisions(
    code: int, state: str, kinds: list[Outcome], crashes: int, down: list[str], requeue: bool, kind: Outcome
) -> None:
    """Requeued are stops and lost nodes without limit, crashes three times, bad input and cancelled jobs never."""
    decision = decide(code, state, kinds, crashes, 3, down)
    assert (decision.requeue, decision.kind) == (requeue, kind)


def run(directory: Path, *words: str, attempt: int = 0, job: str = "7") -> subprocess.CompletedProcess[str]:
    """The script as a batch script calls it, on a machine without Slurm."""
    environment = {
        "SLURM_JOB_ID": job,
        "SLURM_RESTART_COUNT": str(attempt),
        "PYTHONPATH": str(ROOT),
        "PATH": "/nowhere",
    }
    command = [sys.executable, "-m", "maep.launch.job.requeue", str(directory), "3", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_script_writes_down_what_it_decides(tmp_path: Path) -> None:
    """A good end, and a node that does not see the run directory, named by the batch script."""
    assert run(tmp_path, "0", "").returncode == 0
    log = run(tmp_path, str(ExitCode.RUN_UNSEEN), "node n3 does not see /runs/x", attempt=1).stderr
    attempts = [json.loads(line) for line in (tmp_path / "7" / "attempts.jsonl").read_text().splitlines()]
    assert [(line["attempt"], line["kind"], line["requeued"]) for line in attempts] == [
        (0, Outcome.FINISHED, False), (1, Outcome.FINAL, False),
    ]  # fmt: skip
    assert attempts[1]["reason"] == "node n3 does not see /runs/x"
    assert "is not requeued: node n3" in log


def test_script_needs_only_the_standard_library(tmp_path: Path) -> None:
    """It starts under an interpreter that finds no installed package: seconds may be all that is left."""
    words = [sys.executable, "-S", "-m", "maep.launch.job.requeue", str(tmp_path), "3", "0", ""]
    environment = {"SLURM_JOB_ID": "7", "PYTHONPATH": str(ROOT)}
    assert subprocess.run(words, env=environment, check=False).returncode == 0


def test_workers_of_an_array_have_their_own_exits(tmp_path: Path) -> None:
    """The directory is the array's id and the worker's number, not Slurm's internal one."""
    environment = {
        "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "PYTHONPATH": str(ROOT),
        "PATH": os.environ["PATH"],
    }  # fmt: skip
    words = [sys.executable, "-m", "maep.launch.job.requeue", str(tmp_path), "3", "0", ""]
    subprocess.run(words, env=environment, check=True)
    assert (tmp_path / "7_2" / "attempts.jsonl").is_file()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"rank": "2"}', "[" * 9999, '{"code": NaN}'])
def test_damaged_records_are_told_and_passed_over(tmp_path: Path, text: str) -> None:
    """The decision does not depend on them, and what cannot be read is named in the job's log."""
    exits = tmp_path / "7"
    exits.mkdir()
    (exits / "attempt-000-rank-0002.json").write_text(text)
    (exits / "attempts.jsonl").write_text(f"{text}\n")
    done = run(tmp_path, str(ExitCode.BAD_INPUT), "", attempt=0)
    assert done.returncode == 0, done.stderr
    for name in ("attempt-000-rank-0002.json", "attempts.jsonl, line 1"):
        assert f"warning: {exits}/{name}: " in done.stderr
    [attempt] = read_attempts(exits, lambda _: None)
    assert (attempt.code, attempt.kind) == (2, Outcome.CRASHED)


def test_records_without_an_end_are_not_waited_for(tmp_path: Path) -> None:
    """A pipe in the place of a record, or of the log, is named like any other damage."""
    os.mkfifo(tmp_path / "attempt-000-rank-0000.json")
    os.mkfifo(tmp_path / "attempts.jsonl")
    told: list[str] = []
    assert (read_exits(tmp_path, None, told.append), read_attempts(tmp_path, told.append)) == ([], [])
    assert ["is no regular file" in line for line in told] == [True, True]


WORKERS = """\
JobId=7 ArrayJobId=7 ArrayTaskId=2 JobName=x JobState=RUNNING Reason=None Restarts=0 RunTime=00:01:00 TimeLimit=1:00:00
JobId=9 ArrayJobId=7 ArrayTaskId=1 JobName=x JobState=COMPLETED Reason=None Restarts=0
JobId=8 ArrayJobId=7 ArrayTaskId=0 JobName=x JobState=CANCELLED Reason=None Restarts=0
JobId=12 ArrayJobId=7 ArrayTaskId=3-9%4 JobName=x JobState=PENDING Reason=Resources Restarts=0
"""


@pytest.mark.parametrize(
    ("job", "state"),
    [("7_2", "RUNNING"), ("7_1", "COMPLETED"), ("7_0", "CANCELLED"), ("7_5", ""), ("7", ""), ("8", "")],
)
def test_a_worker_is_read_out_of_its_siblings(job: str, state: str) -> None:
    """Of an answer for all of them, also where the last worker has the array's id."""
    assert fields_of_job(WORKERS, job).get("JobState", "") == state
    assert fields_of_job("JobId=7 JobState=RUNNING", "7")["JobState"] == "RUNNING"


def test_slurm_is_asked_about_the_worker_alone(tmp_path: Path) -> None:
    """The last worker, whose SLURM_JOB_ID is the array's: shown and requeued by array and number, while one is gone."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\ncase "$*" in *show*) cat <<"E"\n{WORKERS}E\nesac\n')
    scontrol.chmod(0o755)
    environment = {
        "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "PYTHONPATH": str(ROOT),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }  # fmt: skip
    words = [sys.executable, "-m", "maep.launch.job.requeue", str(tmp_path), "3", "140", ""]
    subprocess.run(words, env=environment, check=True)
    assert (tmp_path / "calls").read_text().splitlines() == ["--oneliner show job 7_2", "requeue 7_2"]
    [attempt] = read_attempts(tmp_path / "7_2")
    assert (attempt.kind, attempt.requeued) == (Outcome.STOPPED, True)


def test_a_time_limit_that_lets_no_step_be_done_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After five attempts at the same step; a preemption, or one step more, and it is requeued without limit."""
    exits = tmp_path / "7"
    exits.mkdir()

    def ended(attempt: int, step: int, signal: str = "SIGUSR2") -> None:
        error = f"stopped by {signal} after step {step}; the same command goes on from there"
        facts = {"rank": 0, "node": "n1", "kind": "stopped", "code": 140, "error": error, "traceback": "", "time": 1.0}
        (exits / f"attempt-{attempt:03d}-rank-0000.json").write_text(json.dumps(facts))

    for attempt in range(6):
        ended(attempt, 12 if attempt else 3)
    for attempt, step in ((3, None), (4, None), (5, 12)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(attempt))
        assert fruitless_step(exits) == step
    ended(3, 12, "SIGTERM")
    assert fruitless_step(exits) is None
    ended(3, 12)
    log = run(tmp_path, "140", "", attempt=5).stderr
    assert "is not requeued: the time limit ended 5 attempts in a row after step 12: give more --time" in log
