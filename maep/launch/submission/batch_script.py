"""The batch script of a job: what is asked of Slurm, and what runs around the processes."""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor

from maep.config.schema import Settings
from maep.launch.cluster.jobs import ARRAY, Job
from maep.launch.cluster.settings import megabytes_of
from maep.launch.rank.task import Task
from maep.runtime.exits import ExitCode
from maep.storage.atomic import digest

MARGIN = 10  # seconds between a save that took all of its grace and the kill
# On every node: can it read the settings, enter the working directory and run Python?
LOOK = """\
look='test -r "$0" && test -d "$1" && test -x "$2" && exit; echo "node $SLURMD_NODENAME does not see $0, $1 or $2"; exit {code}'
unseen=$(srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1 --kill-on-bad-exit=0 --quiet \
  sh -c "$look" {config} {place} {python}) || exit"""  # noqa: E501
# On the way out: does the job begin again?
LEAVE = """\
leave() {{ code=$?; trap '' TERM USR2
{python} -m maep.launch.job.requeue {ends} {crashes} "$code" "$unseen"; exit "$code"; }}
trap leave EXIT
trap : TERM USR2"""


@dataclass(frozen=True)
class Submission:
    """What all jobs of a submission have in common.

    run: the run directory. place: the directory that relative paths start from. code: the copy that jobs execute.
    """

    settings: Settings
    run: Path
    place: Path
    code: Path

    @property
    def config(self) -> Path:
        """The settings as submitted; jobs of other settings have another file."""
        return self.run / "jobs" / f"config-{digest(asdict(self.settings))[:16]}.yaml"

    def folder(self, stage: str) -> Path:
        """Where Submitit's files, the logs and the records of a stage's jobs lie."""
        return self.run / "jobs" / stage

    def tasks(self, job: Job) -> list[Task]:
        """What the processes do: one task a job, or one a worker."""
        ends = str(self.folder(job.stage) / "ends")
        common = (job.stage, job.kind, str(self.config), ends, str(self.place), job.nodes, job.tasks)
        return [Task(*common, worker=(i, job.workers)) for i in range(job.workers)]

    def setup(self, job: Job) -> list[str]:
        """Shell lines before srun. On its way out the script decides whether the job begins again."""
        ends, config, place, code, python = map(
            shlex.quote,
            (f"{self.folder(job.stage)}/ends", f"{self.config}", f"{self.place}", f"{self.code}", self.python(job)),
        )
        threads = self.settings.compute.threads or job.settings.cpus_per_task
        lines = [
            *job.settings.setup,
            f"export PYTHONPATH={code} PYTHONSAFEPATH=1 OMP_NUM_THREADS={threads}",
            *LEAVE.format(python=python, ends=ends, crashes=job.settings.max_crashes).splitlines(),
        ]
        if job.is_elastic:
            lines.append(f'export SLURM_NTASKS="$((SLURM_JOB_NUM_NODES * {job.tasks}))"')
        if job.nodes[1] > 1:
            lines += LOOK.format(code=int(ExitCode.RUN_UNSEEN), config=config, place=place, python=python).splitlines()
        return lines

    @staticmethod
    def python(job: Job) -> str:
        """The interpreter on the nodes."""
        return job.settings.python or sys.executable

    def parameters(self, job: Job, after: list[str]) -> dict[str, Any]:
        """Submitit's parameters for the job. after: ids of jobs that must have ended well before."""
        asked = job.settings
        more: dict[str, Any] = {"requeue": True, "chdir": self.place, "signal": f"USR2@{self.grace}"}
        if job.is_elastic:
            # With --ntasks-per-node Slurm would give no more nodes than the fewest need: it counts tasks first.
            more |= {"nodes": f"{job.nodes[0]}-{job.nodes[1]}", "mincpus": job.tasks * asked.cpus_per_task}
            size = {"nodes": job.nodes[1]}
        else:
            size = {"nodes": job.nodes[1], "ntasks_per_node": job.tasks, "cpus_per_task": asked.cpus_per_task}
        if after:
            more |= {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
        return {
            **size,
            "job_name": f"{asked.name or self.settings.run.name}-{job.stage}",
            "time": asked.minutes,
            "gpus_per_node": job.gpus or None,
            "mem": f"{megabytes_of(asked.mem_per_task) * job.tasks}M" if asked.mem_per_task else None,
            "partition": asked.partition,
            "account": asked.account,
            "qos": asked.qos,
            "constraint": asked.constraint,
            "exclude": asked.exclude,
            "array_parallelism": asked.array_parallelism,
            "stderr_to_stdout": True,
            "setup": self.setup(job),
            "srun_args": [
                "--kill-on-bad-exit=1", "--distribution=block", "--open-mode=append",
                f"--ntasks-per-node={job.tasks}", f"--cpus-per-task={asked.cpus_per_task}",
            ],
            "additional_parameters": more,
        }  # fmt: skip

    @property
    def grace(self) -> int:
        """Seconds before the time limit at which the processes are told: the save's, and a few to leave in."""
        return int(-(-self.settings.compute.grace // 1)) + MARGIN

    def executor(self, job: Job, after: list[str], *, on_paper: bool = False) -> SlurmExecutor:
        """Submitit's executor for the job; on_paper: without needing Slurm here."""
        python = self.python(job)
        block_signals = self.code / "maep" / "launch" / "job" / "block_signals.py"
        python = shlex.join([python, "-I", "-S", str(block_signals), python])
        made = (_PaperExecutor if on_paper else SlurmExecutor)(self.folder(job.stage), python=python)
        made.update_parameters(**self.parameters(job, after))
        return made

    def script(self, job: Job, after: list[str]) -> str:
        """The batch script, as sbatch would get it."""
        executor = self.executor(job, after, on_paper=True)
        if job.kind == ARRAY and job.workers > 1:
            executor.parameters["map_count"] = job.workers
        return executor._make_submission_file_text(executor._submitit_command_str, "paper")


class _PaperExecutor(SlurmExecutor):
    """Writes scripts where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 1
