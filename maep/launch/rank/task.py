"""What each process of a SLURM job does; Submitit calls it on every rank, from the copy of the code.

It takes nothing from an earlier life: a requeued job runs the same pickled task, and finds in the run directory
what has been done.
"""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from submitit import JobEnvironment

from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.launch.cluster.jobs import ARRAY, POINTS, RANKS
from maep.launch.job.attempts import CRASHED, FINAL, LOST, STOPPED, job_now, life_now, write_end
from maep.launch.rank.environment import rank_environment
from maep.runtime.errors import EarlyEnd, PeerLost, Stopped, UserError, fail
from maep.runtime.exits import ExitCode
from maep.training.signals import SIGNALS, arm

FIRST_PORT, PORTS = 21000, 10000  # below the ports that a system hands out by itself
End = Callable[[str, int, str], object]  # kind, exit code, error: writes down how this rank ended
STOPS = {128 + signum: signum.name for signum in SIGNALS}


@dataclass(frozen=True)
class Task:
    """One process's work for a stage; it ends the process.

    kind: single, ranks or array. config: the settings as they were submitted. ends: where ends are written down.
    place: the working directory, which relative paths start from. nodes: fewest and most. tasks: processes a node.
    worker: (i, n) of an array.
    """

    stage: str
    kind: str
    config: str
    ends: str
    place: str
    nodes: tuple[int, int] = (1, 1)
    tasks: int = 1
    worker: tuple[int, int] = (0, 1)

    def __call__(self) -> None:
        """Run as the rank that SLURM's variables say; exit code as in maep.runtime.exits."""
        rank, node = int(os.environ["SLURM_PROCID"]), os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        end = partial(write_end, Path(self.ends) / job_now(), rank, node)
        try:
            self._run(node, end)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            kind, code = how_it_ended(error)
            told = traceback.format_exc() if kind in (CRASHED, LOST) else ""
            end(kind, code, _line(error), told)
            print(told or _line(error), file=sys.stderr, flush=True)
            _leave(code)

    def _run(self, node: str, end: End) -> None:
        if self.kind == RANKS:
            arm()
        else:
            _unwind_when_asked()
        try:
            os.chdir(self.place)
            settings = load_settings(self.config)
        except OSError as error:
            fail(f"{self.place}: not visible on node {node} ({error.strerror}); choose one that all nodes share")
        if self.stage == POINTS:
            from maep.launch.sweeps.sweep_worker import work_on_points

            work_on_points(Path(settings.run.dir))
        elif self.kind == ARRAY:
            from maep.pipeline.stages import work_on_stage

            work_on_stage(self.stage, settings, self.worker)
        elif self.kind == RANKS:
            self._run_as_rank(settings, end)
        else:
            from maep.pipeline.stages import run_pipeline

            run_pipeline(settings, self.stage, _not_here)

    def _run_as_rank(self, settings: Settings, end: End) -> None:
        """Join the others; rank 0 keeps the stage's books and tells them when to train."""
        from maep.pipeline.stages import run_pipeline
        from maep.training.distributed.coordinator import lead_or_follow
        from maep.training.distributed.heartbeat import told_of_stalls
        from maep.training.distributed.world import join_world
        from maep.training.worker import run_training

        told_of_stalls.append(partial(end, LOST, ExitCode.PEER_LOST))
        here = JobEnvironment()
        self._check_world(here.num_nodes, here.num_tasks)
        port = master_port(int(here.raw_job_id), life_now())
        os.environ |= rank_environment(here.global_rank, here.num_tasks, here.local_rank, here.hostnames[0], port)
        world = join_world(settings.compute, [name for name in here.hostnames for _ in range(self.tasks)])
        lead_or_follow(world, settings, lambda launch: run_pipeline(settings, self.stage, launch), run_training)

    def _check_world(self, nodes: int, processes: int) -> None:
        fewest, most = self.nodes
        if not fewest <= nodes <= most or processes != nodes * self.tasks:
            fail(
                f"{self.stage}: Slurm gave {processes} processes on {nodes} nodes, asked were {self.tasks} on each of "
                f"{fewest if fewest == most else f'{fewest} to {most}'} nodes"
            )


def how_it_ended(error: BaseException) -> tuple[str, int]:
    """(kind of maep.launch.job.attempts, exit code) of what ended a rank."""
    from maep.training.distributed.heartbeat import is_peer_loss

    match error:
        case SystemExit(code=int(code)) if code in STOPS:
            return STOPPED, code
        case Stopped():
            return STOPPED, error.code
        case PeerLost():
            return LOST, error.code
        case EarlyEnd():
            return FINAL, error.code
    return (LOST, ExitCode.PEER_LOST) if is_peer_loss(error) else (CRASHED, ExitCode.FAILED)


def master_port(job: int, life: int) -> int:
    """The port of rank 0, another one in each life of a job: the last one may still be held."""
    return FIRST_PORT + (job * 31 + life * 977) % PORTS


def _line(error: BaseException) -> str:
    """The error on one line, as it is shown to people."""
    if isinstance(error, SystemExit) and error.code in STOPS:
        return f"stopped by {STOPS[error.code]}"
    text = " ".join(str(error).split())
    return text if isinstance(error, (UserError, Stopped)) else f"{type(error).__name__}: {text}"


def _unwind_when_asked() -> None:
    """Signals end the work at once: what it has finished is on disk, its claims are given back on the way out."""

    def unwind(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    for signum in SIGNALS:
        signal.signal(signum, unwind)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _not_here(name: str, _settings: Settings) -> None:
    raise RuntimeError(f"{name}: a stage of a single process launches nothing")


def _leave(code: int) -> None:
    """End the process without waiting for threads of libraries that may hang after a peer is lost."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
