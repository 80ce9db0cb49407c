"""What happens to a job after srun has ended, in its batch script.

`python -m maep.launch.job.requeue ENDS MAX CODE UNSEEN`. ENDS: directory of `maep.launch.job.attempts`. MAX: crashes
after which it begins again. CODE: srun's. UNSEEN: nodes that do not see the run directory, in words.

A stop that was asked for and a lost node begin again without limit, a crash a few times, bad input never. Only the
standard library, since the grace time may be nearly over.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maep.launch.job import attempts as ends
from maep.launch.job import scontrol as controller
from maep.launch.job.attempts import CRASHED, FINAL, LOST, NODE, STOPPED, TAKEN, WELL
from maep.runtime.exits import ExitCode

ASKED = tuple(128 + signum for signum in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT))
OURS = ("RUNNING", "TIMEOUT", "")


@dataclass(frozen=True)
class Decision:
    """Whether the job begins again, what kind of end this was, and why, in words."""

    requeue: bool
    kind: str
    reason: str


def decide(
    code: int, state: str, kinds: Sequence[str], crashes: int, max_crashes: int, down: Sequence[str] = ()
) -> Decision:
    """What to do after a life.

    code: srun's exit code. state: Slurm's word for the job now, "" if it does not answer; anything but RUNNING and
    TIMEOUT means that it was cancelled, or that Slurm itself requeues it. kinds: how the ranks of this life say they
    ended. crashes: those of earlier lives. down: nodes of the job that are lost.
    """
    if code == 0:
        return Decision(False, WELL, "")
    if code == ExitCode.RUN_UNSEEN:
        return Decision(False, FINAL, "a node does not see the run directory")
    if FINAL in kinds:
        return Decision(False, FINAL, "the error would come again")
    if state not in OURS:
        return Decision(False, TAKEN, f"Slurm says {state}: cancelled, or requeued by Slurm itself")
    if down:
        return Decision(True, NODE, f"lost node {', '.join(down)}")
    if code in ASKED and not {CRASHED, LOST} & set(kinds):
        return Decision(True, STOPPED, f"stopped by {signal.Signals(code - 128).name}, saved")
    how = f"exit code {code}" if kinds else f"exit code {code} and no word from any rank"
    if crashes >= max_crashes:
        return Decision(False, CRASHED, f"{how}; crash {crashes + 1}, and --max-crashes is {max_crashes}")
    return Decision(True, CRASHED, f"{how}; crash {crashes + 1} of at most {max_crashes} that begin again")


def main(words: Sequence[str]) -> None:
    """Decide, write it down, requeue."""
    directory, max_crashes, code, unseen = Path(words[0]) / ends.job_now(), int(words[1]), int(words[2]), words[3]
    job, name = os.environ["SLURM_JOB_ID"], f"job {ends.job_now()}, life {ends.life_now()}"
    told = [facts for _, facts in ends.read_ends(directory, ends.life_now())]
    kinds = [facts["kind"] for facts in told]
    crashes = sum(life["kind"] == CRASHED for life in ends.read_lives(directory))
    decision = decide(code, controller.state(job) if code else "", kinds, crashes, max_crashes)
    if decision.kind == CRASHED:
        lost = _lost_nodes(job, {facts["node"] for facts in told})
        decision = decide(code, controller.state(job), kinds, crashes, max_crashes, lost)
    reason = unseen if code == ExitCode.RUN_UNSEEN and unseen else decision.reason
    facts = {"code": code, "requeued": decision.requeue, "kind": decision.kind, "reason": reason}
    ends.write_life(directory, facts)
    if code:
        verb = "begins again" if decision.requeue else "does not begin again"
        print(f"{name}: {verb}: {reason}", file=sys.stderr, flush=True)
    if decision.requeue and not controller.requeue(job):
        print(f"{name}: Slurm does not requeue it; the same launch/slurm.py command goes on", file=sys.stderr)


def _lost_nodes(job: str, heard: set[str]) -> list[str]:
    """Nodes of the job that are lost. heard: where a rank said how it ended.

    A node dies minutes before Slurm takes it out, and until then a requeued job may be put on it again, and fail
    again: Slurm is waited for, which then ends this script and requeues the job itself.
    """
    nodes = controller.job_nodes()
    lost = controller.down(nodes) or controller.unreachable([node for node in nodes if node not in heard])
    if lost:
        print(f"node {', '.join(lost)} does not answer: waiting for Slurm to take it out", file=sys.stderr, flush=True)
        controller.wait_until_out(job, lost)
    return lost


if __name__ == "__main__":
    main(sys.argv[1:])
