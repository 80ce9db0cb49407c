"""Locks on directories: the kernel's (flock), which go when their holder dies, however it dies.

A holder on a frozen node is not dead, and its lock stays. If it is an earlier life of the same SLURM job, SLURM has
ended it, and the lock is taken over: a new file is put in the place of the one that it holds.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from maep.runtime.console import say
from maep.runtime.errors import UserError, fail

LOCK = ".lock"
SHORT, POLL = 2.0, 0.05  # seconds that go without saying, and between two attempts


@dataclass(frozen=True)
class Lock:
    """A directory that this process holds."""

    path: Path
    file: IO[str]

    def is_held(self) -> bool:
        """Whether no later life of the job has taken it over meanwhile."""
        return self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self.file.fileno()))


@contextmanager
def run_lock(directory: Path) -> Iterator[Lock]:
    """Hold the run directory for this process. Raises UserError, naming the holder, if another run is in it."""
    lock, holder = _try(directory, "run.dir=")
    if lock is None:
        fail(f"run.dir={directory}: in use by {_in_words(holder)}; choose another run.dir")
    with lock.file:
        yield lock


@contextmanager
def one_at_a_time(directory: Path) -> Iterator[None]:
    """Hold `directory` while something that several runs share is made in it; others wait and then find it made.

    Raises UserError when the directory cannot be written.
    """
    started, told = time.monotonic(), False
    while (attempt := _try(directory))[0] is None:
        if not told and time.monotonic() - started > SHORT:
            say(f"waiting for {_in_words(attempt[1])}, which works on {directory}")
            told = True
        time.sleep(POLL)
    with attempt[0].file:
        yield


def _try(directory: Path, setting: str = "") -> tuple[Lock, str] | tuple[None, str]:
    """The lock, or None and who holds it. setting: that names the directory, for the error."""
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"{setting}{directory}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read()
        file.close()
        return (_take_over(path, holder), holder) if _is_earlier_life(holder) else (None, holder)
    lock = Lock(path, file)
    if not lock.is_held():  # taken over between opening and locking
        file.close()
        return None, ""
    _sign(file)
    return lock, ""


def _take_over(path: Path, holder: str) -> Lock:
    """Put a lock of our own in the place of one whose holder does not let go."""
    say(f"{path.parent}: taken over from {_in_words(holder)}, an earlier life of this job")
    mine = path.with_name(f".tmp-lock-{socket.gethostname()}-{os.getpid()}")
    file = mine.open("a+")
    fcntl.flock(file, fcntl.LOCK_EX)
    _sign(file)
    mine.replace(path)
    return Lock(path, file)


def _sign(file: IO[str]) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(_life()))
    file.flush()


def _life() -> dict[str, Any]:
    """Who this process is; job and life are SLURM's, None and 0 without it."""
    job, life = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return {"process": os.getpid(), "node": socket.gethostname(), "job": job, "life": life}


def _is_earlier_life(holder: str) -> bool:
    told, mine = _told(holder), _life()
    return mine["job"] is not None and told.get("job") == mine["job"] and told["life"] < mine["life"]


def _told(holder: str) -> dict[str, Any]:
    """What a holder signed with; nothing while it is still signing, or if an older version of this program did."""
    try:
        told = json.loads(holder)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _in_words(holder: str) -> str:
    told = _told(holder)
    return f"process {told['process']} on {told['node']}" if told else "another process"
