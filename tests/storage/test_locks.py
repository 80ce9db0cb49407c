"""Directories that one process at a time may work in."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from maep.runtime.errors import UserError
from maep.storage.locks import one_at_a_time, run_lock

HOLD = """
import sys
from pathlib import Path
from maep.storage.locks import run_lock
with run_lock(Path(sys.argv[1])) as lock:
    print("held", flush=True)
    sys.stdin.readline()
    print(lock.is_held(), flush=True)
"""


@contextmanager
def held_by_another(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process, of this one's SLURM job if there is one, that holds a directory until it is killed or asked."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
        holder.kill()


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process is in the first attempt of a SLURM job."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    return monkeypatch


def test_second_run_is_refused_naming_the_first(tmp_path: Path) -> None:
    """Two runs cannot share a run directory; the lock goes with its holder."""
    with held_by_another(tmp_path) as holder:
        with pytest.raises(UserError, match=f"process {holder.pid}"), run_lock(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with run_lock(tmp_path) as lock:
            assert lock.is_held()


def test_later_attempt_takes_over(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    """A frozen process of the same job's earlier attempt does not keep the directory, and knows when it wakes up."""
    with held_by_another(tmp_path) as holder:
        with pytest.raises(UserError), run_lock(tmp_path):
            pass
        job.setenv("SLURM_RESTART_COUNT", "1")
        with run_lock(tmp_path) as lock:
            assert lock.is_held()
            answer, _ = holder.communicate("\n")
            assert answer == "False\n"
        with run_lock(tmp_path):
            pass


@pytest.mark.parametrize("job_id", ["18", None])
def test_other_jobs_do_not_take_over(tmp_path: Path, job: pytest.MonkeyPatch, job_id: str | None) -> None:
    """Neither a later attempt of another job nor a run without SLURM."""
    with held_by_another(tmp_path):
        job.setenv("SLURM_RESTART_COUNT", "1")
        if job_id:
            job.setenv("SLURM_JOB_ID", job_id)
        else:
            job.delenv("SLURM_JOB_ID")
        with pytest.raises(UserError, match="in use by"), run_lock(tmp_path):
            pass


def test_a_sibling_does_not_take_over(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    """The last worker of an array has the array's id for its own, and is still another job than its siblings."""
    job.setenv("SLURM_ARRAY_JOB_ID", "17")
    job.setenv("SLURM_ARRAY_TASK_ID", "3")
    with held_by_another(tmp_path):
        job.setenv("SLURM_ARRAY_TASK_ID", "2")
        job.setenv("SLURM_RESTART_COUNT", "1")
        with pytest.raises(UserError, match="in use by process"), run_lock(tmp_path):
            pass


@pytest.mark.parametrize("text", [b"\xff\xfe", b"[" * 9999, b'{"process": NaN, "node": "x"}', b"7", b"{", b""])
def test_a_signature_that_cannot_be_read_names_nobody(tmp_path: Path, text: bytes) -> None:
    """The lock is the kernel's; what its file says is for people."""
    with held_by_another(tmp_path):
        (tmp_path / ".lock").write_bytes(text)
        with pytest.raises(UserError, match="in use by another process"), run_lock(tmp_path):
            pass


def test_maker_of_something_shared_takes_over(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    """Nor is a frozen earlier attempt waited for by the next."""
    with held_by_another(tmp_path):
        job.setenv("SLURM_RESTART_COUNT", "1")
        with one_at_a_time(tmp_path):
            pass


def test_a_signature_of_an_older_version_is_understood(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    """It called an attempt a life: the earlier one is taken over from, the same one is not."""
    with held_by_another(tmp_path) as holder:
        signed = {"process": holder.pid, "node": "n1", "job": "17", "life": 1}
        (tmp_path / ".lock").write_text(json.dumps(signed))
        job.setenv("SLURM_RESTART_COUNT", "1")
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on n1"), run_lock(tmp_path):
            pass
        job.setenv("SLURM_RESTART_COUNT", "2")
        with run_lock(tmp_path) as lock:
            assert lock.is_held()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As Lustre answers that was mounted without them: nobody holds the directory, and nobody would let it go."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr("maep.storage.locks.time.sleep", lambda _: pytest.fail("waits for ever"))
    for hold in (one_at_a_time, run_lock):
        with pytest.raises(UserError, match=f"{tmp_path}: its file system gives no locks"), hold(tmp_path):
            pass
