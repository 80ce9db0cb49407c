"""The batch script of a job: what is asked of Slurm, and what runs around the processes."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from submitit import SlurmExecutor

from maep.config.schema import Settings
from maep.launch.cluster.gpu_request import GPUS_PER_NODE, GRES, gpu_parameters
from maep.launch.cluster.job_records import exits_folder, stage_folder
from maep.launch.cluster.jobs import ARRAY, Job
from maep.launch.cluster.settings import megabytes_of
from maep.launch.cluster.single_line import job_name, single_lines
from maep.launch.cluster.slurm_options import sbatch_parameters, srun_arguments
from maep.launch.job.requeue import TO_REQUEUE
from maep.launch.rank.environment import NODE_ADDRESS
from maep.launch.rank.task import Task
from maep.runtime.digests import digest
from maep.runtime.errors import fail
from maep.runtime.exits import ExitCode
from maep.runtime.openmp import POLICY, SPINS

# Seconds between a save that took all of its grace and the kill: the ranks write down how they ended and leave, srun
# ends, and the batch script asks for the requeue, each of them in a second or two on a busy cluster.
MARGIN = 10
# On every node: can it read the settings, enter the working directory and run Python?
LOOK = """\
look='test -r "$0" && test -d "$1" && command -v "$2" >/dev/null && exit; echo "node $SLURMD_NODENAME does not see $0, $1 or $2"; exit {code}'
unseen=$(srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1 --kill-on-bad-exit=0 --quiet \
  sh -c "$look" {config} {directory} {python}) || exit"""  # noqa: E501
# Where the ranks meet if the first node's name is Slurm's alone; asked here, as their interpreter may have no scontrol.
ADDRESS = (
    f'export {NODE_ADDRESS}="$(scontrol --oneliner show node "$SLURMD_NODENAME" '
    r'''| sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')"'''
)
# On the way out: is the job requeued? Signals only end srun, whose exit code says so; the script itself must go on.
# An interpreter in a container may have no Slurm beside it: then it is told the answer, and says what to do.
LEAVE = """\
leave() {{ code=$?; trap '' TERM USR2
job="${{SLURM_ARRAY_TASK_ID:+${{SLURM_ARRAY_JOB_ID}}_}}${{SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}}"
[ "$code" = 0 ] || export MAEP_JOB_STATE="$(scontrol --oneliner show job "$job" 2>/dev/null)"
{python} -m maep.launch.job.requeue {exits} {crashes} "$code" "$unseen"
[ $? != {requeue} ] || for _ in 1 2 3 4 5; do scontrol requeue "$job" && break; sleep 3; done
exit "$code"; }}
trap leave EXIT
trap : TERM USR2"""


@dataclass(frozen=True)
class Submission:
    """What all jobs of a submission have in common.

    run: the run directory. working_directory: where relative paths start from. code: the copy that jobs execute.
    """

    settings: Settings
    run: Path
    working_directory: Path
    code: Path

    @property
    def config(self) -> Path:
        """The settings as submitted; jobs of other settings have another file."""
        return self.run / "jobs" / f"config-{digest(asdict(self.settings))[:16]}.yaml"

    def folder(self, stage: str) -> Path:
        """Where Submitit's files, the logs and the records of a stage's jobs lie."""
        return stage_folder(self.run, stage)

    def tasks(self, job: Job) -> list[Task]:
        """What the processes do: one task a job, or one a worker."""
        exits, directory = str(exits_folder(self.run, job.stage)), str(self.working_directory)
        common = (job.stage, job.kind, str(self.config), exits, directory, job.nodes, job.tasks)
        return [Task(*common, worker=(i, job.workers)) for i in range(job.workers)]

    def setup(self, job: Job) -> list[str]:
        """Shell lines before srun. On its way out the script decides whether the job is requeued."""
        paths = (exits_folder(self.run, job.stage), self.config, self.working_directory, self.code)
        exits, config, directory, code = (shlex.quote(str(path)) for path in paths)
        python, program = shlex.join(self.python(job)), shlex.quote(self.python(job)[0])
        threads = self.settings.compute.threads or job.settings.cpus
        lines = [
            *job.settings.setup,
            # Where sbatch's --export=NONE is a site's default, srun would not hand on what is exported here.
            "unset SLURM_EXPORT_ENV",
            f"export PYTHONPATH={code} PYTHONSAFEPATH=1 OMP_NUM_THREADS={threads}",
            # Ranks and workers share a node's cores (maep/runtime/openmp.py); what a user or site says comes first.
            f'[ -n "${{{POLICY}+set}}" ] || export {SPINS[0]}="${{{SPINS[0]}-{SPINS[1]}}}"',
            *LEAVE.format(
                python=python, exits=exits, crashes=job.settings.max_crashes, requeue=TO_REQUEUE
            ).splitlines(),
        ]
        if job.is_elastic:
            lines.append(f'export SLURM_NTASKS="$((SLURM_JOB_NUM_NODES * {job.tasks}))"')
        if job.nodes[1] > 1:
            code_unseen = int(ExitCode.RUN_UNSEEN)
            lines.append(ADDRESS)
            lines += LOOK.format(code=code_unseen, config=config, directory=directory, python=program).splitlines()
        return lines

    @staticmethod
    def python(job: Job) -> list[str]:
        """The words that start the interpreter on the nodes."""
        return job.settings.interpreter or [sys.executable]

    def parameters(self, job: Job, after: list[str]) -> Mapping[str, object]:
        """Submitit's parameters for the job. after: ids of jobs that must have ended well before."""
        settings = job.settings
        site = {name: value for name, value in settings.sbatch.items() if name != GRES}
        additional: dict[str, object] = {
            **sbatch_parameters(site), "requeue": True, "chdir": self.working_directory, "signal": f"USR2@{self.grace}",
        }  # fmt: skip
        if job.is_elastic:
            # With --ntasks-per-node Slurm would give no more nodes than the fewest need: it counts tasks first.
            additional |= {"nodes": f"{job.nodes[0]}-{job.nodes[1]}", "mincpus": job.tasks * settings.cpus}
            size = {"nodes": job.nodes[1]}  # Submitit wants a number here, the range overrides it
        else:
            size = {"nodes": job.nodes[1], "ntasks_per_node": job.tasks, "cpus_per_task": settings.cpus}
        if after:
            additional |= {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
        return {
            **size,
            **gpu_parameters(job.gpus, settings.gpu_type, settings.gpu_option or GPUS_PER_NODE, settings.sbatch),
            "job_name": job_name(f"{settings.name or self.settings.run.name}-{job.stage}"),
            "wckey": None,  # Submitit's own, which a cluster that tracks them refuses
            "time": settings.minutes,
            "mem": f"{megabytes_of(settings.mem_per_task) * job.tasks}M" if settings.mem_per_task else None,
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
            "constraint": settings.constraint,
            "exclude": settings.exclude,
            "array_parallelism": settings.array_parallelism,
            "stderr_to_stdout": True,
            "setup": self.setup(job),
            "srun_args": [
                "--kill-on-bad-exit=1", "--distribution=block", "--open-mode=append",
                f"--ntasks-per-node={job.tasks}", f"--cpus-per-task={settings.cpus}",
                *srun_arguments(settings.srun),
            ],
            "additional_parameters": additional,
        }  # fmt: skip

    @property
    def grace(self) -> int:
        """Seconds before the time limit at which the processes are told: the save's, and a few to leave in."""
        return int(-(-self.settings.compute.grace // 1)) + MARGIN

    def executor(self, job: Job, after: list[str], *, on_paper: bool = False) -> SlurmExecutor:
        """Submitit's executor for the job; on_paper: without needing Slurm here."""
        self._check_lines(job, after)
        python = self.python(job)
        block_signals = self.code / "maep" / "launch" / "job" / "block_signals.py"
        command = shlex.join([*python, "-I", "-S", str(block_signals), *python])
        executor = (_PaperExecutor if on_paper else SlurmExecutor)(self.folder(job.stage), python=command)
        executor.update_parameters(**self.parameters(job, after))
        return executor

    def _check_lines(self, job: Job, after: list[str]) -> None:
        """Refuse every text from outside that could be more than part of a line of the script."""
        run = {"name": self.settings.run.name, "dir": self.run}
        single_lines("run", run)
        outside = {**asdict(job.settings), "stage": job.stage, "working directory": self.working_directory}
        for name, value in {**outside, "code": self.code, "jobs waited for": after}.items():
            single_lines(name, value)
        if unfit := next((character for character in "%\\" if character in str(self.run)), ""):
            fail(f"run.dir={self.run}: {unfit} is a pattern in the names of Slurm's output; choose another run.dir")

    def script(self, job: Job, after: list[str]) -> str:
        """The batch script, as sbatch would get it.

        Submitit shows it only to those who submit it, hence its private methods; pyproject.toml pins the versions that
        have them, and tests/launch/submission asserts what comes out.
        """
        executor = self.executor(job, after, on_paper=True)
        if job.kind == ARRAY and job.workers > 1:
            executor.parameters["map_count"] = job.workers
        return executor._make_submission_file_text(executor._submitit_command_str, "paper")


class _PaperExecutor(SlurmExecutor):
    """Writes scripts where there is no Slurm: Submitit refuses to be made there unless its affinity is above 0."""

    @classmethod
    def affinity(cls) -> int:
        return 1
