"""The watchdog: a process that stalls says why, calls back, and ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maep.runtime.exits import ExitCode
from maep.training.distributed.heartbeat import Heartbeat
from tests.tiny import ROOT, environment

STALLED = """
import sys, time
from pathlib import Path
from maep.training.distributed.heartbeat import Heartbeat, Phase
with Heartbeat(Path(sys.argv[1]), 0.5, on_stall=Path(sys.argv[1], "why").write_text) as pulse:
    pulse.at(Phase.REDUCE, 7)
    time.sleep(60)
"""


def test_a_stall_is_told_before_the_process_ends(tmp_path: Path) -> None:
    """The callback gets the rank, the step and the phase, in the words that are printed."""
    command = [sys.executable, "-c", STALLED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == ExitCode.PEER_LOST, done.stderr
    why = (tmp_path / "why").read_text()
    assert why.startswith("rank 0 has been in step 8 (reduce)")
    assert f"error: {why}" in done.stderr


@pytest.mark.parametrize("shift", [-7200.0, 0.0, 7200.0])
def test_the_clock_of_another_node_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    """A beat that was just written is no silence, whatever its node's clock says; an old file is one."""
    pulse, now = Heartbeat(tmp_path, 600.0), time.time()
    with pulse:
        path = tmp_path / "heartbeats" / "rank-0000.json"
        monkeypatch.setattr(time, "time", lambda: now + shift)
        pulse._write()
        assert "no sign of life" not in pulse.blame()
        past = path.stat().st_mtime - 100
        os.utime(path, (past, past))
        assert "has given no sign of life for 1" in pulse.blame()
