"""What Slurm says and does: its commands, and their answers as data."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from maep.launch.cluster.outer_shell import outer_environment
from maep.launch.command_name import command_name
from maep.runtime.errors import fail

FIELD = re.compile(r"(?:^| )([A-Z][A-Za-z/:]*)=")
ENDED = (
    "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "DEADLINE", "BOOT_FAIL",
)  # fmt: skip
SLURMS_MOST_WORKERS = 1001  # of an array, where slurm.conf says no other number
FORGOTTEN = "Invalid job id"  # scontrol's word for a job that it does not know, or no more
WHY = {
    "Resources": "waits for nodes to become free",
    "Priority": "waits behind jobs of higher priority",
    "Dependency": "waits for the jobs before it",
    "DependencyNeverSatisfied": "a job before it failed",
    "BeginTime": "was requeued, and starts in a moment",
    "PartitionNodeLimit": "asks for more nodes than the partition gives",
    "PartitionTimeLimit": "asks for more time than the partition gives",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "JobHeldUser": "held; release it with scontrol release",
    "JobHeldAdmin": "held by an administrator",
    "JobArrayTaskLimit": "waits for workers of its array, --array-parallelism",
    "AssocGrpNodeLimit": "the account's nodes are in use",
    "QOSMaxNodePerUserLimit": "your nodes of this quality of service are in use",
    "QOSMaxJobsPerUserLimit": "your jobs of this quality of service are running",
    "BadConstraints": "no node fits what it asks for",
    "launch_failed_requeued_held": "could not be started on its node, and is held",
}


@dataclass(frozen=True)
class JobState:
    """One job, or one worker of an array, as Slurm knows it now.

    seconds: how long its present attempt has run. restarts: attempts before it; None where only accounting knows it.
    """

    job: str
    state: str
    reason: str
    nodes: str
    exit_code: str
    restarts: int | None
    seconds: int

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED

    @property
    def waits(self) -> str:
        """Slurm's word why it does not start, with what it means; "" if it does not wait."""
        if self.state != "PENDING" or self.reason in ("None", ""):
            return ""
        return f"{self.reason} ({WHY[self.reason]})" if self.reason in WHY else self.reason


def require_slurm() -> None:
    """Raise UserError unless this machine can submit jobs."""
    missing = [name for name in ("sbatch", "srun", "scontrol", "sinfo") if shutil.which(name) is None]
    if missing:
        fail(
            f"no Slurm on this machine: {missing[0]} is not on PATH; log in to a cluster's node, or use "
            f"{command_name('run')}"
        )
    if problem := silence():
        fail(problem)


def silence() -> str:
    """Why Slurm cannot be asked how jobs stand; "" if it answers."""
    if shutil.which("scontrol") is None:
        return "no Slurm on this machine: scontrol is not on PATH"
    done = _run("scontrol", "ping")
    return f"Slurm does not answer: {_first_line(done.stdout + done.stderr)}" if done.returncode else ""


def _run(*words: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command of Slurm, as if the shell were in no allocation; one that is not there fails as a shell says it.

    Its answers may hold what anybody has written in any encoding, such as why a node is down.
    """
    try:
        return subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="replace", check=False, env=outer_environment(),
            input=input,
        )  # fmt: skip
    except FileNotFoundError:
        return subprocess.CompletedProcess(words, 127, "", f"{words[0]} is not on PATH")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no answer")


def partitions() -> dict[str, int]:
    """`{partition: nodes}`, those included that a site hides and jobs may name; the default one first."""
    lines = _answer("sinfo", "--all", "--noheader", "--format=%P|%D|%R").splitlines()
    rows = [line.split("|") for line in lines]
    sizes: dict[str, int] = {}
    for name, count, _ in sorted(rows, key=lambda row: not row[0].endswith("*")):
        sizes[name.rstrip("*")] = sizes.get(name.rstrip("*"), 0) + int(count)
    return sizes


def default_partition() -> str:
    """The partition that jobs go to which name none."""
    return next(iter(partitions()), "")


def most_workers() -> int:
    """How many workers an array may have on this cluster (MaxArraySize); 1 where it has no arrays."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", scontrol("show", "config"), re.MULTILINE)
    return max(int(match[1]), 1) if match else SLURMS_MOST_WORKERS


def scontrol(*words: str) -> str:
    """What `scontrol` answers, hidden partitions included. Raises UserError with its complaint."""
    return _answer("scontrol", "--all", *words)


def qos_preempt_mode(name: str) -> str:
    """What preemption does to jobs of a quality of service, in capitals; "" where accounting does not say."""
    if not name:
        return ""
    done = _run("sacctmgr", "--noheader", "--parsable2", "show", "qos", name, "format=PreemptMode")
    return (done.stdout.split() or [""])[0].upper() if done.returncode == 0 else ""


def node_addresses() -> set[str]:
    """The addresses of all nodes, as slurm.conf has them."""
    return set(_answer("sinfo", "--all", "--noheader", "--Node", "--format=%o").split())


def _answer(*words: str) -> str:
    done = _run(*words)
    if done.returncode:
        fail(f"{words[0]}: {_first_line(done.stderr or done.stdout)}")
    return done.stdout


def why_refused(script: str) -> str:
    """Slurm's own words why it would never run a batch script; "" if it would."""
    done = _run("sbatch", "--test-only", input=script)
    lines = [line.removeprefix("sbatch: error: ") for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)) if done.returncode else ""


def job_states(jobs: Sequence[str]) -> dict[str, list[JobState]]:
    """`{job: its state, or its workers' states}` of those that Slurm still knows, now or from its accounting.

    Nothing where Slurm cannot be asked; `silence` says why.
    """
    answers = {job: states for job in jobs if (states := _from_controller(job))}
    forgotten = [job for job in jobs if job not in answers]
    return answers | _from_accounting(forgotten)


def _from_controller(job: str) -> list[JobState]:
    done = _run("scontrol", "--oneliner", "show", "job", job)
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [_parse(line) for line in lines if "JobState=" in line]


def is_forgotten(job: str) -> bool:
    """Whether the controller answers, and knows a job no more: minutes after its end (MinJobAge) it forgets it."""
    done = _run("scontrol", "--oneliner", "show", "job", job)
    return done.returncode != 0 and FORGOTTEN in done.stderr


def fields_of(line: str) -> dict[str, str]:
    """`{name: value}` of a line of scontrol; values may hold blanks.

    The first of a name counts: paths, which come late, may hold what looks like one.
    """
    parts = FIELD.split(line.strip())[1:]
    return dict(reversed([*zip(parts[::2], (value.strip() for value in parts[1::2]), strict=True)]))


def _parse(line: str) -> JobState:
    fields = fields_of(line)
    array, task = fields.get("ArrayJobId"), fields.get("ArrayTaskId")
    return JobState(
        job=f"{array}_{task}" if array else fields["JobId"],
        state=fields["JobState"],
        reason=fields.get("Reason", "").split(",")[0],
        nodes=fields.get("NodeList", "").replace("(null)", ""),
        exit_code=fields.get("ExitCode", ""),
        restarts=int(fields.get("Restarts", "0")),
        seconds=seconds_of(fields.get("RunTime", "")) if fields.get("StartTime", "Unknown") != "Unknown" else 0,
    )


def seconds_of(text: str) -> int:
    """Seconds of Slurm's `[D-]H:M:S`; 0 for a time it does not know."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts):
        return 0
    total = 0
    for part in parts:
        total = total * 60 + int(part)
    return int(days or 0) * 86400 + total


def _from_accounting(jobs: Sequence[str]) -> dict[str, list[JobState]]:
    """States of jobs that the controller has forgotten; nothing where there is no accounting."""
    if not jobs:
        return {}
    format = "--format=JobID,State,NodeList,ExitCode,Elapsed"
    done = _run("sacct", "--allocations", "--noheader", "--parsable2", format, f"--jobs={','.join(jobs)}")
    states: dict[str, list[JobState]] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        job, state, nodes, code, elapsed = line.split("|")
        # `CANCELLED by 1000` is one state.
        answer = JobState(job, state.split()[0], "", nodes, code, None, seconds_of(elapsed))
        states.setdefault(job.split("_")[0], []).append(answer)
    return states


def cancel(jobs: Sequence[str]) -> str:
    """Cancel jobs; returns Slurm's complaint, or ""."""
    done = _run("scancel", *jobs)
    return _first_line(done.stderr) if done.returncode else ""


def wait_also(job: str, after: Sequence[str]) -> str:
    """Let a waiting job wait for all of these; returns Slurm's complaint, or ""."""
    done = _run("scontrol", "update", f"JobId={job}", f"Dependency=afterok:{':'.join(after)}")
    return _first_line(done.stderr) if done.returncode else ""
