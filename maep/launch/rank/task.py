"""What each process of a SLURM job does; Submitit calls it on every rank, from the copy of the code.

It takes nothing from an earlier attempt: a requeued job runs the same pickled task, and finds in the run directory
what has been done.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from submitit import JobEnvironment

from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.launch.cluster.jobs import ARRAY, POINTS, RANKS
from maep.launch.job.attempts import Outcome, attempt_number, job_name, write_exit
from maep.launch.rank.environment import rank_environment
from maep.runtime.errors import EarlyEnd, PeerLost, Stopped, UserError, fail, shown_traceback
from maep.runtime.exits import ExitCode, leave
from maep.runtime.unwinding import request_behind, unwind_for_launcher
from maep.training.signals import arm

# Above what clusters reserve for services, and below 32768, from where Linux hands ports out to anybody who asks.
FIRST_PORT, PORTS = 21000, 10000
RecordExit = Callable[[Outcome, int, str], object]  # kind, exit code, error: writes down how this rank ended


@dataclass(frozen=True)
class Task:
    """One process's work for a stage; it ends the process.

    kind: single, ranks or array. config: the settings as they were submitted. exits: directory where it is written
    down how attempts ended. working_directory: which relative paths start from. nodes: fewest and most. tasks:
    processes a node. worker: (i, n) of an array.
    """

    stage: str
    kind: str
    config: str
    exits: str
    working_directory: str
    nodes: tuple[int, int] = (1, 1)
    tasks: int = 1
    worker: tuple[int, int] = (0, 1)

    def __call__(self) -> None:
        """Run as the rank that SLURM's variables say; exit code as in maep.runtime.exits."""
        rank, node = int(os.environ["SLURM_PROCID"]), os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        record_exit = partial(write_exit, Path(self.exits) / job_name(), rank, node)
        try:
            self._run(node, record_exit)
        except (Exception, EarlyEnd, SystemExit) as error:  # noqa: BLE001
            kind, code = outcome_of(error)
            frames = shown_traceback() if kind in (Outcome.CRASHED, Outcome.PEER_LOST) else ""
            record_exit(kind, code, _line(error), frames)
            print(frames or _line(error), file=sys.stderr, flush=True)
            leave(code)

    def _run(self, node: str, record_exit: RecordExit) -> None:
        if self.kind == RANKS:
            arm()
        else:
            unwind_for_launcher()
        try:
            os.chdir(self.working_directory)
            settings = load_settings(self.config)
        except OSError as error:
            fail(
                f"{self.working_directory}: not visible on node {node} ({error.strerror}); choose one that all nodes "
                f"share"
            )
        if self.stage == POINTS:
            from maep.launch.sweeps.sweep_worker import work_on_points

            work_on_points(Path(settings.run.dir))
        elif self.kind == ARRAY:
            from maep.pipeline.execution import work_on_stage

            work_on_stage(self.stage, settings, self.worker)
        elif self.kind == RANKS:
            self._run_as_rank(settings, record_exit)
        else:
            from maep.pipeline.execution import run_pipeline

            run_pipeline(settings, self.stage, _refuse_to_launch)

    def _run_as_rank(self, settings: Settings, record_exit: RecordExit) -> None:
        """Join the others; rank 0 keeps the stage's books and tells them when to train."""
        from maep.launch.rank.meeting_point import meeting_point
        from maep.pipeline.execution import run_pipeline
        from maep.training.distributed.coordinator import run_coordinated
        from maep.training.distributed.world import join_world
        from maep.training.worker import run_training

        slurm = JobEnvironment()
        self._check_world(slurm.num_nodes, slurm.num_tasks)
        port, address = master_port(int(slurm.raw_job_id), attempt_number()), meeting_point(slurm.hostnames)
        os.environ |= rank_environment(slurm.global_rank, slurm.num_tasks, slurm.local_rank, address, port)
        world = join_world(settings.compute, [name for name in slurm.hostnames for _ in range(self.tasks)])
        train = partial(run_training, on_stall=partial(record_exit, Outcome.PEER_LOST, ExitCode.PEER_LOST))
        run_coordinated(world, settings, lambda launch: run_pipeline(settings, self.stage, launch), train)

    def _check_world(self, nodes: int, processes: int) -> None:
        fewest, most = self.nodes
        if not fewest <= nodes <= most or processes != nodes * self.tasks:
            fail(
                f"{self.stage}: Slurm gave {processes} processes on {nodes} nodes, asked were {self.tasks} on each of "
                f"{fewest if fewest == most else f'{fewest} to {most}'} nodes"
            )


def outcome_of(error: BaseException) -> tuple[Outcome, int]:
    """(outcome, exit code) of what ended a rank."""
    from maep.training.distributed.heartbeat import is_peer_loss

    if signum := request_behind(error):  # also where something failed while the work was unwound
        return Outcome.STOPPED, 128 + signum
    match error:
        case PeerLost():
            return Outcome.PEER_LOST, error.code
        case EarlyEnd():
            return Outcome.FINAL, error.code
    if is_peer_loss(error):
        return Outcome.PEER_LOST, ExitCode.PEER_LOST
    return Outcome.CRASHED, ExitCode.FAILED


def master_port(job: int, attempt: int) -> int:
    """The port of rank 0: a function of the job and attempt, so that all ranks know it without being told.

    Another one in each attempt, since the last one's may still be held, and in jobs that may share a node. The two
    factors have no divisor in common with the number of ports: attempts, and jobs, go through all of them before one
    comes again, and the next attempt of a job meets only a job submitted 1,967 jobs earlier.
    """
    return FIRST_PORT + (job * 31 + attempt * 977) % PORTS


def _line(error: BaseException) -> str:
    """The error on one line, as it is shown to people."""
    if isinstance(error, SystemExit) and (signum := request_behind(error)):
        return f"stopped by {signal.Signals(signum).name}"
    text = " ".join(str(error).split())
    return text if isinstance(error, (UserError, Stopped)) else f"{type(error).__name__}: {text}"


def _refuse_to_launch(name: str, _settings: Settings) -> None:
    raise RuntimeError(f"{name}: a stage of a single process launches nothing")
