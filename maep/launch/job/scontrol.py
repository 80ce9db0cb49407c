"""What the batch script of a job asks of Slurm. Only the standard library, as in maep.launch.job.requeue."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

# Half a minute of asking for a requeue: a controller that is restarted, or gives its place to a backup, takes seconds.
REQUEUE_TRIES = 10
PAUSE = 3.0  # seconds between two questions: thousands of jobs may ask one controller
PROBE = 30.0  # seconds in which a node that lives starts a command, also when all probes of a large job come at once
WITH_OVERLAP = (20, 11)  # the first Slurm in which steps share nothing unless they say so
ANSWER = "MAEP_JOB_STATE"  # what scontrol told the batch script of its job, for an interpreter in a container
PATIENCE = 900.0  # seconds for Slurm to take a dead node out: SlurmdTimeout is 300 by default, and sites treble it


def slurm(*words: str) -> str | None:
    """What a Slurm command answers; None, and its complaint in the log, if it fails or is not there."""
    try:
        # What others have written, such as why a node is down, may be in any encoding.
        done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return None
    if done.returncode:
        print(f"{' '.join(words)}: {done.stderr.strip()}", file=sys.stderr, flush=True)
        return None
    return done.stdout


def is_here() -> bool:
    """Whether Slurm can be asked: in a container it cannot, and the batch script outside asks."""
    return ANSWER not in os.environ or shutil.which("scontrol") is not None


def job_state(job: str) -> str:
    """RUNNING, TIMEOUT, or what else Slurm says; in COMPLETING it hides why. "" if it does not answer.

    job: 123, or 123_4 for a worker of an array; 123 alone would be every worker of it.
    """
    answer = slurm("scontrol", "--oneliner", "show", "job", job) if is_here() else os.environ.get(ANSWER)
    fields = fields_of_job(answer or "", job)
    state = fields.get("JobState", "")
    # A cancelled job and one that ran out of time look alike while they complete, but for the time they took.
    if state == "COMPLETING" and _seconds(fields["RunTime"]) >= _seconds(fields["TimeLimit"]):
        return "TIMEOUT"
    return state


def fields_of_job(answer: str, job: str) -> dict[str, str]:
    """The fields of this very job, or worker, of an answer that may hold a line a worker; {} if it is not among them.

    The last worker that starts has the array's own id for its JobId, so a worker is told by the array and its number.
    """
    for line in answer.splitlines():
        # The first of a name counts: paths, which come late, may hold what looks like one.
        fields = dict(word.split("=", 1) for word in reversed(line.split()) if "=" in word)
        array = fields.get("ArrayJobId")
        if job == (f"{array}_{fields.get('ArrayTaskId')}" if array else fields.get("JobId")):
            return fields
    return {}


def _seconds(text: str) -> float:
    """Seconds of Slurm's [D-]H:M:S; endless for UNLIMITED."""
    days, _, clock = text.rpartition("-")
    if not clock[:1].isdigit():
        return float("inf")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def job_nodes() -> list[str]:
    """The nodes of this job."""
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    return (slurm("scontrol", "show", "hostnames", nodes) or "").split() if nodes else []


def down(nodes: Sequence[str]) -> list[str]:
    """Those that Slurm knows to be down, or that do not answer it."""
    words = ("--all", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%N %T")  # all: hidden ones too
    answer = slurm("sinfo", *words) if nodes else None
    pairs = [line.split() for line in (answer or "").splitlines()]
    return sorted({name for name, word in pairs if word.endswith("*") or word.startswith(("down", "fail"))})


def unreachable(nodes: Sequence[str]) -> list[str]:
    """Those, other than this one, on which no command can be started within `PROBE` seconds."""
    others = [node for node in nodes if node != os.environ.get("SLURMD_NODENAME")]
    words = ["srun", *overlap(), "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=0", "--quiet"]
    probes = {node: subprocess.Popen([*words, f"--nodelist={node}", "true"]) for node in others}
    deadline = time.monotonic() + PROBE
    return [node for node, probe in probes.items() if not _succeeds(probe, deadline - time.monotonic())]


def overlap() -> list[str]:
    """The option of srun with which a step shares what another one holds; before Slurm 20.11 all did, without it."""
    version = re.match(r"slurm (\d+)\.(\d+)", slurm("srun", "--version") or "")
    return [] if version and (int(version[1]), int(version[2])) < WITH_OVERLAP else ["--overlap"]


def _succeeds(probe: "subprocess.Popen[bytes]", seconds: float) -> bool:
    try:
        return probe.wait(max(0.0, seconds)) == 0
    except subprocess.TimeoutExpired:
        probe.kill()
        probe.wait()
        return False


def wait_until_out(job: str, nodes: Sequence[str]) -> None:
    """Wait until Slurm has taken the nodes out, or the job from them, for at most `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and job_state(job) == "RUNNING" and not set(nodes) <= set(down(nodes)):
        time.sleep(PAUSE)


def requeue(job: str) -> bool:
    """Ask until Slurm has it, for half a minute; whether it has. Where there is no scontrol, waiting brings none."""
    for _ in range(REQUEUE_TRIES if shutil.which("scontrol") else 1):
        if slurm("scontrol", "requeue", job) is not None:
            return True
        time.sleep(PAUSE)
    return False
