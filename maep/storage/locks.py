"""Locks on directories: the kernel's (flock), which go when their holder dies, however it dies.

A holder on a frozen node is not dead, and its lock stays. If it is an earlier attempt of the same SLURM job, SLURM has
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
from typing import IO, Any, Self

from maep.runtime.console import say
from maep.runtime.errors import UserError, fail
from maep.runtime.slurm_job import this_job
from maep.storage.atomic import temporary_name
from maep.storage.documents import Document
from maep.storage.json_files import LIMIT, parse_json

LOCK = ".lock"
SHORT = 2.0  # seconds of waiting that go without saying: most of what is shared is made faster
POLL = 0.05  # seconds between two tries: the wait ends at once, and a try is one system call


@dataclass(frozen=True)
class Lock:
    """A directory that this process holds."""

    path: Path
    file: IO[str]

    def is_held(self) -> bool:
        """Whether no later attempt of the job has taken it over meanwhile."""
        return self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self.file.fileno()))


@dataclass(frozen=True)
class Signature(Document):
    """Who holds a lock.

    job: SLURM's, of an array with its worker, None without one; attempt: how often SLURM has restarted that job.
    """

    process: int
    node: str
    job: str | None = None
    attempt: int = 0

    @classmethod
    def upgrade(cls, entries: dict[str, Any], version: int) -> dict[str, Any]:
        """Format 0 called an attempt a life."""
        return {**entries, "attempt": entries.get("life", 0)}

    @classmethod
    def of_this_process(cls) -> Self:
        """As it signs its locks."""
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        return cls(os.getpid(), socket.gethostname(), this_job(), restarts)

    @classmethod
    def from_text(cls, text: str) -> Self | None:
        """From a lock's file; None while its holder is still signing, or where another version of maep signed."""
        try:
            return cls.from_json(parse_json(text, LOCK), LOCK)
        except UserError:
            return None


@contextmanager
def run_lock(directory: Path) -> Iterator[Lock]:
    """Hold the run directory for this process. Raises UserError, naming the holder, if another run is in it."""
    lock, holder = _try(directory, "run.dir=")
    if lock is None:
        fail(f"run.dir={directory}: in use by {_name_of(holder)}; choose another run.dir")
    with lock.file:
        yield lock


@contextmanager
def one_at_a_time(directory: Path) -> Iterator[None]:
    """Hold `directory` while something that several runs share is made in it; others wait until it is finished.

    Raises UserError when the directory cannot be written, or its file system knows no locks.
    """
    started, reported = time.monotonic(), False
    lock, holder = _try(directory)
    while lock is None:
        if not reported and time.monotonic() - started > SHORT:
            say(f"waiting for {_name_of(holder)}, which works on {directory}")
            reported = True
        time.sleep(POLL)
        lock, holder = _try(directory)
    with lock.file:
        yield


def _try(directory: Path, setting: str = "") -> tuple[Lock | None, Signature | None]:
    """The lock, or None and who holds it, as far as that is known. setting: that names the directory, for the error."""
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", errors="replace", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{setting}{directory}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = Signature.from_text(file.read(LIMIT))
        file.close()
        return (_take_over(path, holder) if _is_earlier_attempt(holder) else None), holder
    except OSError as error:  # nobody holds it: waiting would have no end
        file.close()
        fail(
            f"{setting}{directory}: its file system gives no locks (flock: {error.strerror}); have it mounted with "
            "them (Lustre: -o flock, NFS: with its lock daemon), or choose a directory elsewhere"
        )
    lock = Lock(path, file)
    if not lock.is_held():  # taken over between opening and locking
        file.close()
        return None, None
    _sign(file)
    return lock, None


def _take_over(path: Path, holder: Signature | None) -> Lock:
    """Replace the lock's file, whose holder does not let go, by one that this process holds."""
    say(f"{path.parent}: taken over from {_name_of(holder)}, an earlier attempt of this job")
    temporary = temporary_name(path)
    file = temporary.open("a+", encoding="utf-8")
    fcntl.flock(file, fcntl.LOCK_EX)
    _sign(file)
    temporary.replace(path)
    return Lock(path, file)


def _sign(file: IO[str]) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(Signature.of_this_process().to_json()))
    file.flush()


def _is_earlier_attempt(holder: Signature | None) -> bool:
    successor = Signature.of_this_process()
    if holder is None or successor.job is None:
        return False
    return holder.job == successor.job and holder.attempt < successor.attempt


def _name_of(holder: Signature | None) -> str:
    return f"process {holder.process} on {holder.node}" if holder else "another process"
