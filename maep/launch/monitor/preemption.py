"""Jobs that Slurm cancelled when it preempted them, where its partitions do so whatever a job asks for."""

from collections.abc import Sequence

from maep.launch.cluster.job_memory import JobMemory
from maep.launch.cluster.job_records import JobRecord
from maep.launch.cluster.slurm_client import JobState
from maep.launch.command_name import command_name

PREEMPTED = "PREEMPTED"  # a state that ends a job; one that is requeued leaves it at once


def is_preempted(states: Sequence[JobState]) -> bool:
    """Whether a job, or a worker of an array, was ended for good by a preemption."""
    return bool(states) and all(state.ended for state in states) and any(state.state == PREEMPTED for state in states)


def cancelled_by_preemption(records: Sequence[JobRecord], memory: JobMemory) -> list[str]:
    """The stages and jobs among these that were, in words."""
    states = memory.states([record.job for record in records])
    return [f"{record.stage} {record.job}" for record in records if is_preempted(states.get(record.job, []))]


def preemption_line(record: JobRecord) -> str:
    """What a person is told of such a job."""
    command = command_name("slurm")
    return (
        f"{record.stage}: job {record.job} was preempted and cancelled, which its partition does in place of a requeue "
        f"(PreemptMode=CANCEL); it goes on from its last checkpoint with: {record.command or command}; with "
        f"--wait that is done for you"
    )
