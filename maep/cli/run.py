"""Run the pipeline on this machine: `python launch/local.py cfg=digits [stage=…] [--nproc N]`.

A sweep is run point by point: `python launch/local.py cfg=ablation/table15 --scale cpu [--only 0,3-5] [--dry-run]`.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType

from launch.ranks import rank_environment
from maep.ablation.sweep import is_sweep
from maep.config import load_settings, split_arguments, sweep_names
from maep.errors import exit_code, fail
from maep.settings import Settings
from maep.training.signals import SIGNALS, Stopped, hold_signals


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn(name: str, settings: Settings, processes: int) -> None:
    """Run a training stage on several processes of this machine; ends them all when one fails.

    Signals to the launcher are passed on, so that every rank saves. Raises Stopped, Paused, PeerLost when a process was
    killed or does not answer, or UserError with the code of the first process that failed.
    """
    from maep.training.distributed import PEER_LOST, PeerLost
    from maep.training.loop import Paused
    from maep.training.worker import PAUSED

    port = _free_port()
    threads = str(settings.compute.threads or max(1, (os.cpu_count() or 1) // processes))
    command = [sys.executable, "-m", "maep.training.worker", name, f"cfg={settings.run.dir}/config.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    received: list[int] = []
    workers: list[subprocess.Popen[bytes]] = []

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signum)

    with hold_signals():
        workers += [
            subprocess.Popen(command, env=environment | rank_environment(rank, processes, rank, "127.0.0.1", port))
            for rank in range(processes)
        ]
        previous = {signum: signal.signal(signum, pass_on) for signum in SIGNALS}
    try:
        code = _wait(workers)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if code > 128 and received:
        raise Stopped(received[0], -1)
    if code < 0 or code == PEER_LOST:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "lost another; its message is above"
        raise PeerLost(f"{name}: one of its {processes} processes {how}")
    if code == PAUSED:
        raise Paused(name, getattr(settings, name).pause_at)
    if code:
        fail(f"{name}: one of its {processes} processes ended with code {code}; its message is above")


def _wait(workers: list[subprocess.Popen[bytes]]) -> int:
    """The exit code of the first process that fails, after ending the others; 0 when all end well."""
    while True:
        codes = [worker.poll() for worker in workers]
        failed = next((code for code in codes if code), 0)
        if failed or all(code == 0 for code in codes):
            break
        time.sleep(0.05)
    deadline = time.monotonic() + 30
    for worker in workers:
        try:
            worker.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    return failed


def main() -> int:
    """Parse, resolve, run; the exit codes are those of maep.errors and maep.training.worker."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--nproc", type=int, default=1, help="processes of the training stages on this machine")
    options.add_argument("--scale", help="of a sweep: paper, or cpu for a small version of the table")
    options.add_argument("--dry-run", action="store_true", help="of a sweep: show its points and what they share")
    options.add_argument("--only", default="", metavar="I,J-K", help="of a sweep: only these points, counted from 0")
    arguments = [word for word in sys.argv[1:] if not word.startswith("stage=")]
    stages = [word.partition("=")[2] for word in sys.argv[1:] if word.startswith("stage=")]
    namespace, overrides = split_arguments(__doc__ or "", arguments, options=options)
    if namespace.nproc < 1:
        fail(f"--nproc {namespace.nproc}: must be at least 1")
    if not namespace.cfg:
        fail("cfg: name a configuration, such as cfg=digits")
    if is_sweep(namespace.cfg):
        if stages:
            fail(f"stage={stages[-1]}: a sweep runs every stage of its points; leave it out")
        return _run_sweep(namespace, overrides)
    for option in ("scale", "only", "dry_run"):
        if getattr(namespace, option):
            fail(f"--{option.replace('_', '-')}: {namespace.cfg} is no sweep; choose one of {', '.join(sweep_names())}")
    return _run(namespace, load_settings(namespace.cfg, overrides), stages[-1] if stages else "all")


def _run(namespace: argparse.Namespace, settings: Settings, wanted: str) -> int:
    # Imported only now: a mistyped setting is answered without waiting for every library.
    from maep.stages import run_pipeline
    from maep.training.worker import stopped_code

    return stopped_code(lambda: run_pipeline(settings, wanted, _launcher(namespace.nproc)))


def _run_sweep(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from launch.sweeps import run_sweep, show_sweep

    if namespace.dry_run:
        return show_sweep(namespace, overrides)

    return run_sweep(namespace, overrides, _launcher(namespace.nproc))


def _launcher(processes: int) -> Callable[[str, Settings], None]:
    """How a training stage is run: in this process, or on several."""
    from maep.training.worker import run_training

    return run_training if processes == 1 else lambda name, settings: spawn(name, settings, processes)


if __name__ == "__main__":
    sys.exit(exit_code(main))
