"""Which process is which: by number, machine and start, and who has ended."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maep.runtime import process_identity
from maep.runtime.process_identity import has_ended, this_machine, this_process

PRINT = "from maep.runtime.process_identity import this_process; print(this_process(), flush=True); input()"


def test_a_process_has_ended_when_it_is_no_more() -> None:
    """Not while it lives; at once when it is killed, before anybody has waited for it and after."""
    process = subprocess.Popen([sys.executable, "-c", PRINT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    identity = process.stdout.readline().strip()
    assert identity.split("-")[:2] == [str(process.pid), this_machine()]
    assert not has_ended(identity)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(identity)
    process.communicate()
    assert has_ended(identity)


def test_a_number_that_came_again_is_another_process() -> None:
    """One of this machine that has the number of a living one, and began at another time, has ended."""
    process, machine, start = this_process().split("-")
    assert has_ended(f"{process}-{machine}-{int(start) - 1}")
    assert not has_ended(f"{process}-{machine}-{start}")


def test_of_another_boot_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where the kernel tells no boot, nor of what is no identity."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    identity = f"{dead.pid}-{this_machine()}-1"
    assert has_ended(identity)
    (tmp_path / "boot").write_text("another\n")
    for boot in (tmp_path / "boot", tmp_path / "missing"):
        monkeypatch.setattr(process_identity, "BOOT", boot)
        this_machine.cache_clear()
        assert not has_ended(identity)
    this_machine.cache_clear()
    monkeypatch.undo()
    assert not any(map(has_ended, ("", "0-0-0", f"0-{this_machine()}-1", f"{'9' * 30}-{this_machine()}-1")))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as somebody else")
def test_a_process_of_another_user_lives() -> None:
    """A user who may not signal it, and to whom /proc may show nothing of it, does not take it for ended."""
    code = f"import os, sys; from maep.runtime import process_identity as i; os.setuid(65534); {HIDDEN}"
    done = subprocess.run([sys.executable, "-c", code, this_process()], check=False)
    assert done.returncode == 0


HIDDEN = "i.start_ticks = lambda process: None; sys.exit(i.has_ended(sys.argv[1]))"
