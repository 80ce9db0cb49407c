"""What happens to a job after srun has ended, in its batch script.

`python -m maep.launch.job.requeue EXITS MAX CODE UNSEEN`. EXITS: directory of `maep.launch.job.attempts`. MAX: crashes
after which it is requeued. CODE: srun's. UNSEEN: nodes that do not see the run directory, in words.

After a stop that was asked for, and after the loss of a node, it is requeued without limit, after a crash a few times,
after bad input never; nor where its time limit has stopped it again and again before it came a step further.
Only the standard library, since the grace time may be nearly over.
"""

import re
import signal
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from maep.launch.job import scontrol
from maep.launch.job.attempts import (
    Outcome,
    attempt_number,
    job_name,
    read_attempts,
    read_exits,
    write_attempt,
)
from maep.runtime.exits import ExitCode

STOP_CODES = tuple(128 + signum for signum in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT))
TO_REQUEUE = 75  # exit code, as sendmail's "try again": no Slurm here, in a container, so the batch script requeues
# How a rank says that its time was nearly over (`Stopped`); a preemption sends SIGTERM, and may come at any time.
OUT_OF_TIME = re.compile(r"stopped by SIGUSR2 after step (?P<step>\d+);")
FRUITLESS = 5  # attempts in a row of a training, each ended by its time limit at one step: the sixth would be, too
# In any other state Slurm has decided already. TIMEOUT is where a job is whose time limit ended it, and "" is no
# answer, from a controller that is being restarted: there, a requeue too many harms less than one too few.
UNDECIDED = ("RUNNING", "TIMEOUT", "")


@dataclass(frozen=True)
class Decision:
    """Whether the job is requeued, what kind of end this was, and why, in words for people."""

    requeue: bool
    kind: Outcome
    reason: str


def decide(
    code: int, state: str, kinds: Sequence[str], crashes: int, max_crashes: int, down: Sequence[str] = (),
    stuck_at: int | None = None,
) -> Decision:  # fmt: skip
    """What to do after an attempt.

    code: srun's exit code. state: Slurm's word for the job now, "" if it does not answer; anything but RUNNING and
    TIMEOUT means that it was cancelled, or that Slurm itself requeues it. kinds: how the ranks of this attempt say they
    ended. crashes: those of earlier attempts. down: nodes of the job that are lost. stuck_at: as of `fruitless_step`.
    """
    if code == 0:
        return Decision(False, Outcome.FINISHED, "")
    if code == ExitCode.RUN_UNSEEN:
        return Decision(False, Outcome.FINAL, "a node does not see the run directory")
    if Outcome.FINAL in kinds:
        return Decision(False, Outcome.FINAL, "the error would come again")
    if state not in UNDECIDED:
        return Decision(False, Outcome.TAKEN_BY_SLURM, f"Slurm says {state}: cancelled, or requeued by Slurm itself")
    if down:
        return Decision(True, Outcome.NODE_LOST, f"lost node {', '.join(down)}")
    if code in STOP_CODES and not {Outcome.CRASHED, Outcome.PEER_LOST} & set(kinds):
        if stuck_at is not None:
            why = f"the time limit ended {FRUITLESS} attempts in a row after step {stuck_at}: give more --time"
            return Decision(False, Outcome.FINAL, why)
        return Decision(True, Outcome.STOPPED, f"stopped by {signal.Signals(code - 128).name}, saved")
    how = f"exit code {code}" if kinds else f"exit code {code} and no word from any rank"
    if crashes >= max_crashes:
        return Decision(False, Outcome.CRASHED, f"{how}; crash {crashes + 1}, and --max-crashes is {max_crashes}")
    return Decision(True, Outcome.CRASHED, f"{how}; crash {crashes + 1} of at most {max_crashes} that are requeued")


def fruitless_step(exits: Path) -> int | None:
    """The step that the last FRUITLESS attempts all ended at for want of time; None if one of them came further."""
    steps: set[int] = set()
    for number in range(attempt_number() - FRUITLESS + 1, attempt_number() + 1):
        errors = [record.error for _, record in read_exits(exits, number, lambda _line: None)] if number >= 0 else []
        said = {int(match["step"]) for error in errors if (match := OUT_OF_TIME.match(error))}
        if not said:
            return None
        steps |= said
    return steps.pop() if len(steps) == 1 else None


def main(words: Sequence[str]) -> int:
    """Decide, write it down, requeue; returns `TO_REQUEUE` where the batch script has to do that, else 0."""
    exits, max_crashes, code, unseen = Path(words[0]) / job_name(), int(words[1]), int(words[2]), words[3]
    job, title = job_name(), f"job {job_name()}, attempt {attempt_number()}"
    ranks = [record for _, record in read_exits(exits, attempt_number())]
    kinds = [record.kind for record in ranks]
    crashes = sum(attempt.kind == Outcome.CRASHED for attempt in read_attempts(exits))
    state = scontrol.job_state(job) if code else ""
    decision = decide(code, state, kinds, crashes, max_crashes, stuck_at=fruitless_step(exits))
    if decision.kind == Outcome.CRASHED:
        lost = _lost_nodes(job, {record.node for record in ranks})
        # Asked again: while Slurm was waited for, it may have requeued the job itself.
        decision = decide(code, scontrol.job_state(job), kinds, crashes, max_crashes, lost)
    reason = unseen if code == ExitCode.RUN_UNSEEN and unseen else decision.reason
    write_attempt(exits, code, decision.requeue, decision.kind, reason)
    if code:
        verb = "is requeued" if decision.requeue else "is not requeued"
        print(f"{title}: {verb}: {reason}", file=sys.stderr, flush=True)
    if decision.requeue and not scontrol.is_here():
        return TO_REQUEUE
    if decision.requeue and not scontrol.requeue(job):
        print(f"{title}: Slurm does not requeue it; the same command that submitted it goes on", file=sys.stderr)
    return 0


def _lost_nodes(job: str, reporting: Collection[str]) -> list[str]:
    """Nodes of the job that are lost. reporting: those where a rank said how it ended.

    A node dies minutes before Slurm takes it out, and until then a requeued job may be put on it again, and fail
    again: Slurm is waited for, which then ends this script and requeues the job itself.
    """
    if not scontrol.is_here():
        return []
    nodes = scontrol.job_nodes()
    lost = scontrol.down(nodes) or scontrol.unreachable([node for node in nodes if node not in reporting])
    if lost:
        print(f"node {', '.join(lost)} does not answer: waiting for Slurm to take it out", file=sys.stderr, flush=True)
        scontrol.wait_until_out(job, lost)
    return lost


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
