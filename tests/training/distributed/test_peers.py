"""Lost and stalled ranks end the job in time and are named; the same command then goes on. Real processes."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.tiny import ROOT, Problem, environment
from tests.training.test_loop import steps_logged

STALL = ["compute.stall_timeout=20", "pretrain.steps=100000", "pretrain.save_every=5", "pretrain.log_every=1"]


def rank_of(launcher: int, rank: int) -> int:
    """The process id of a rank that a launcher started."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat, variables = (process / "stat").read_text(), (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == launcher and f"RANK={rank}".encode() in variables:
            return int(process.name)
    raise AssertionError(f"rank {rank} is not running")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_lost_rank_is_named_and_the_job_ends(problem: Problem, run_dir: Path, signum: int) -> None:
    """Of three ranks one is killed, or frozen: the job ends with code 3 in time, saying which rank it was."""
    launcher = subprocess.Popen(
        problem.command("pretrain", run_dir, *STALL, nproc=3), cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while steps_logged(run_dir) < 12:
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.02)
    victim = rank_of(launcher.pid, 1)
    os.kill(victim, signum)
    started = time.monotonic()
    told, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 3, told
    assert time.monotonic() - started < 90
    assert "rank 1 on node" in told
    assert "no sign of life" in told
    assert not Path(f"/proc/{victim}").exists()
    shutil.rmtree(run_dir)
