"""Ends of jobs, remembered where the controller forgets them; the controller is a program that forgets."""

from pathlib import Path

import pytest

from maep.launch.cluster.job_memory import JobMemory
from maep.launch.cluster.job_records import JobRecord
from maep.launch.monitor.preemption import cancelled_by_preemption

SCONTROL = """#!/bin/sh
[ -s {answer} ] && exec /bin/cat {answer}
echo "slurm_load_jobs error: $(/bin/cat {complaint})" >&2
exit 1
"""
ARRAY = JobRecord("9", "points", "array", 2, (1, 1), 1, 0)


class Controller:
    """A `scontrol` that knows the workers of job 9 that it was last told of."""

    def __init__(self, folder: Path) -> None:
        self.answer, self.complaint, self.program = (folder / name for name in ("answer", "complaint", "scontrol"))
        self.program.write_text(SCONTROL.format(answer=self.answer, complaint=self.complaint))
        self.program.chmod(0o755)

    def knows(self, complaint: str = "Invalid job id specified", **states: str) -> None:
        """States by worker, as worker_0="RUNNING"; complaint: what it says where it knows none."""
        line = "JobId=1 ArrayJobId=9 ArrayTaskId={} JobState={} Reason=None Restarts=0 RunTime=00:00:09\n"
        self.answer.write_text("".join(line.format(name[7:], state) for name, state in states.items()))
        self.complaint.write_text(complaint)


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    """Found by commands; there is no accounting."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return Controller(tmp_path)


def followed(controller: Controller, *steps: dict[str, str]) -> JobMemory:
    """What is remembered after the controller knew all this, one after the other."""
    memory = JobMemory()
    for states in steps:
        controller.knows(**states)
        memory.states(["9"])
    return memory


def test_an_end_is_remembered(controller: Controller) -> None:
    """Worker 0 failed and is forgotten while worker 1 runs: the array went wrong, though all that is known did not."""
    memory = followed(controller, {"worker_0": "FAILED", "worker_1": "RUNNING"}, {"worker_1": "RUNNING"})
    assert not memory.is_over("9")
    controller.knows(worker_1="COMPLETED")
    assert {state.state for state in memory.states(["9"])["9"]} == {"FAILED", "COMPLETED"}
    assert memory.is_over("9")
    assert memory.went_wrong(ARRAY, lambda: True)


def test_a_preemption_is_remembered(controller: Controller) -> None:
    """Also then what is left is submitted again."""
    memory = followed(controller, {"worker_0": "PREEMPTED", "worker_1": "RUNNING"}, {"worker_1": "COMPLETED"})
    assert cancelled_by_preemption([ARRAY], memory) == ["points 9"]


def test_a_requeue_takes_an_end_back(controller: Controller) -> None:
    """A worker that Slurm says is pending has not ended."""
    end = {"worker_0": "NODE_FAIL", "worker_1": "COMPLETED"}
    memory = followed(controller, end, {"worker_0": "PENDING", "worker_1": "COMPLETED"})
    assert not memory.is_over("9")
    controller.knows(worker_0="COMPLETED", worker_1="COMPLETED")
    memory.states(["9"])
    assert not memory.went_wrong(ARRAY, lambda: False)


def test_a_controller_that_does_not_answer_ends_nothing(controller: Controller) -> None:
    """A worker ended, another runs, and the controller is restarted: that is waited for."""
    memory = followed(controller, {"worker_0": "COMPLETED", "worker_1": "RUNNING"}, {"complaint": "Unable to contact"})
    assert not memory.is_over("9")


@pytest.mark.parametrize("last", [{}, {"worker_1": "COMPLETED"}])
def test_of_an_end_that_nobody_saw_the_records_tell(controller: Controller, last: dict[str, str]) -> None:
    """Worker 0 was running when it was last seen; worker 1's end was, or was not."""
    memory = followed(controller, {"worker_0": "RUNNING", "worker_1": "RUNNING"}, last)
    assert memory.is_over("9")
    assert memory.went_wrong(ARRAY, lambda: False)
    assert not memory.went_wrong(ARRAY, lambda: True)
