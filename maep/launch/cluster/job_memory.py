"""How followed jobs ended, also where Slurm does not remember it.

Without accounting the controller forgets every job, and every worker of an array, some minutes after its end
(MinJobAge). Whoever follows jobs for longer keeps what it has seen of their ends here.
"""

from collections.abc import Callable, Sequence

from maep.launch.cluster.job_records import JobRecord
from maep.launch.cluster.slurm_client import JobState, is_forgotten, job_states


class JobMemory:
    """Slurm's answers about some jobs, and the ends among all that it has answered before."""

    def __init__(self) -> None:
        self._ends: dict[str, dict[str, JobState]] = {}
        self._answers: dict[str, list[JobState]] = {}

    def states(self, jobs: Sequence[str]) -> dict[str, list[JobState]]:
        """As `job_states`, asked anew, with the ends that Slurm has forgotten since they were seen here."""
        self._answers = job_states(jobs)
        states = {}
        for job in jobs:
            # An end counts until Slurm says otherwise: a worker may be requeued.
            known = self._ends.get(job, {}) | {state.job: state for state in self._answers.get(job, [])}
            self._ends[job] = {worker: state for worker, state in known.items() if state.ended}
            if known:
                states[job] = list(known.values())
        return states

    def is_over(self, job: str) -> bool:
        """Whether Slurm will do nothing more for a job, by its last answer; none at all may come of a restart of it."""
        answer = self._answers.get(job, [])
        return all(state.ended for state in answer) and (bool(answer) or is_forgotten(job))

    def went_wrong(self, record: JobRecord, is_finished: Callable[[], bool]) -> bool:
        """Of a job that is over. is_finished: whether its work is done by its own records.

        Asked where Slurm has forgotten the job, or a worker that nobody saw end.
        """
        ends = self._ends.get(record.job, {})
        is_bad = any(state.state != "COMPLETED" for state in ends.values())
        if self._answers.get(record.job) and is_bad:
            return True
        return (is_bad or len(ends) < record.workers) and not is_finished()
