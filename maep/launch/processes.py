"""The processes of a stage on this machine, training or shared: started, sent the signals on, and waited for."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

from maep.config.pair_source import TRAININGS
from maep.config.schema import Settings
from maep.launch.rank.environment import rank_environment
from maep.runtime.cores import task_cores
from maep.runtime.errors import Paused, PeerLost, ProcessFailed, Stopped
from maep.runtime.exits import ExitCode
from maep.runtime.unwinding import SIGNALS, hold_signals

GRACE = 30  # seconds: ranks that lost one end by themselves within a heartbeat or two; what hangs longer is killed
POLL = 0.05  # seconds: nothing beside a training step, and nobody waits noticeably for a failed rank's message


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn(name: str, settings: Settings, processes: int) -> None:
    """Run a training stage, or one whose work is shared out, on several processes; ends them all when one fails.

    Signals to the launcher are passed on, so that every rank saves. Raises Stopped, Paused, PeerLost when a process of
    a training was killed or does not answer, or ProcessFailed with the code of the first process that failed.
    """
    is_training = name in TRAININGS
    module = "maep.training.worker" if is_training else "maep.pipeline.shared_stage"
    port = _free_port()
    threads = str(settings.compute.threads or max(1, task_cores() // processes))
    command = [sys.executable, "-m", module, name, f"cfg={settings.run.dir}/config.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "LOCAL_WORLD_SIZE": str(processes)}
    received: list[int] = []
    workers: list[subprocess.Popen[bytes]] = []

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signum)

    previous = {signum: signal.signal(signum, pass_on) for signum in SIGNALS}
    try:
        with hold_signals():
            for rank in range(processes):
                ranked = environment | rank_environment(rank, processes, rank, "127.0.0.1", port)
                workers.append(subprocess.Popen(command, env=ranked))
        for signum in tuple(received):  # while they were started: the later ones do not have it yet
            pass_on(signum, None)
        code = _wait(workers, end_at_once=not is_training)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if received and (code == 0 or code > 128 or -code in received):  # 0: it came after the last step
        raise Stopped(received[0], -1)
    if code < 0 or code == ExitCode.PEER_LOST:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "lost another; its message is above"
        message = f"{name}: one of its {processes} processes {how}"
        raise PeerLost(message) if is_training else ProcessFailed(f"{message}; the same command goes on", PeerLost.code)
    if code == ExitCode.PAUSED:
        raise Paused(name, getattr(settings, name).pause_at)
    if code:
        raise ProcessFailed(f"{name}: one of its {processes} processes ended with code {code}; see above", code)


def _wait(workers: list[subprocess.Popen[bytes]], *, end_at_once: bool) -> int:
    """The exit code of the first process that fails, after ending the others; 0 when all end well.

    end_at_once: tell the others to end; ranks of a training find out by themselves, and say whom they lost.
    """
    while True:
        codes = [worker.poll() for worker in workers]
        failed = next((code for code in codes if code), 0)
        if failed or all(code == 0 for code in codes):
            break
        time.sleep(POLL)
    for worker in workers:
        if end_at_once and worker.poll() is None:
            worker.terminate()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        try:
            worker.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    return failed
