"""What happens to a job after srun has ended, in its batch script: `python -m launch.requeue ENDS MAX CODE UNSEEN`.

ENDS: directory of `launch.ends`. MAX: crashes after which it begins again. CODE: srun's. UNSEEN: nodes that do not
see the run directory, in words.

A stop that was asked for and a lost node begin again without limit, a crash a few times, bad input never. Only the
standard library, since the grace time may be nearly over.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import ends
from launch.ends import CRASHED, FINAL, LOST, NODE, STOPPED, TAKEN, WELL

ASKED = tuple(128 + signum for signum in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT))
OURS = ("RUNNING", "TIMEOUT", "")
UNSEEN = 66
ATTEMPTS = 10
PAUSE = 3.0


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
    if code == UNSEEN:
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


def _slurm(*words: str) -> str | None:
    """What a Slurm command answers; None, and its complaint in the log, if it fails or is not there."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return None
    if done.returncode:
        print(f"{' '.join(words)}: {done.stderr.strip()}", file=sys.stderr, flush=True)
        return None
    return done.stdout


def _state(job: str) -> str:
    """RUNNING, TIMEOUT, or what else Slurm says; in COMPLETING it hides why."""
    answer = _slurm("scontrol", "--oneliner", "show", "job", job) or ""
    fields = dict(word.split("=", 1) for word in answer.split() if "=" in word)
    state = fields.get("JobState", "")
    if state == "COMPLETING" and _seconds(fields["RunTime"]) >= _seconds(fields["TimeLimit"]):
        return "TIMEOUT"
    return state


def _seconds(text: str) -> float:
    """Seconds of Slurm's [D-]H:M:S; endless for UNLIMITED."""
    days, _, clock = text.rpartition("-")
    if not clock[:1].isdigit():
        return float("inf")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def _down_nodes() -> list[str]:
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    answer = _slurm("sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N %T") if nodes else None
    pairs = [line.split() for line in (answer or "").splitlines()]
    return sorted({name for name, state in pairs if state.endswith("*") or state.startswith(("down", "fail"))})


def _requeue(job: str) -> bool:
    """Ask until Slurm has it, for half a minute: its controller may be restarting."""
    for _ in range(ATTEMPTS):
        if _slurm("scontrol", "requeue", job) is not None:
            return True
        time.sleep(PAUSE)
    return False


def main(words: Sequence[str]) -> None:
    """Decide, write it down, requeue."""
    directory, max_crashes, code, unseen = Path(words[0]) / ends.job_now(), int(words[1]), int(words[2]), words[3]
    job, name = os.environ["SLURM_JOB_ID"], f"job {ends.job_now()}, life {ends.life_now()}"
    kinds = [facts["kind"] for _, facts in ends.read_ends(directory, ends.life_now())]
    crashes = sum(life["kind"] == CRASHED for life in ends.read_lives(directory))
    decision = decide(code, _state(job) if code else "", kinds, crashes, max_crashes, _down_nodes() if code else ())
    reason = unseen if code == UNSEEN and unseen else decision.reason
    facts = {"code": code, "requeued": decision.requeue, "kind": decision.kind, "reason": reason}
    ends.write_life(directory, facts)
    if code:
        verb = "begins again" if decision.requeue else "does not begin again"
        print(f"{name}: {verb}: {reason}", file=sys.stderr, flush=True)
    if decision.requeue and not _requeue(job):
        print(f"{name}: Slurm does not requeue it; the same launch/slurm.py command goes on", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
