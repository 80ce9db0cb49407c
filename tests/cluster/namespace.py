"""PID namespaces: a group of processes that can be listed, stopped and killed as one, and that die together."""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.cluster.waiting import wait_until

# The init tells its namespace in the file, then runs the program.
INIT = 'readlink /proc/self/ns/pid > "$0.tmp" && mv "$0.tmp" "$0" && {}'
UNSHARE = ["unshare", "--uts", "--pid", "--mount", "--propagation=slave", "--fork", "--kill-child=KILL", "--mount-proc"]


@dataclass(frozen=True)
class Namespace:
    """The namespace whose name ("pid:[4026532201]") is in the file `path`, while it lives."""

    path: Path

    def start(
        self,
        script: str,
        *,
        log: IO[bytes],
        parent: "Namespace | None" = None,
        stdin: int = subprocess.DEVNULL,
        keep_open: tuple[int, ...] = (),
    ) -> subprocess.Popen[bytes]:
        """Run a bash script as the first process of a new namespace, inside `parent`'s if given.

        keep_open: descriptors that it inherits. Returns the process outside, which ends with the namespace.
        """
        command = [*UNSHARE, "bash", "-c", INIT.format(script), str(self.path)]
        if parent:
            command = parent.inside(command)
        process = subprocess.Popen(command, stdin=stdin, stdout=log, stderr=subprocess.STDOUT, pass_fds=keep_open)
        wait_until(lambda: self.path.exists() or process.poll() is not None, 20, f"{self.path.name} to start")
        return process

    def inside(self, command: list[str]) -> list[str]:
        """The command that runs `command` in this namespace."""
        return ["nsenter", "--pid", "--mount", "--uts", "--target", str(self.init()), "--", *command]

    def init(self) -> int:
        """The id, outside, of its first process.

        Not the lowest of the ids, which begin again at their end. A later process may be the `unshare` of a namespace
        within this one, which is in this PID namespace but in the other's mount namespace.
        """
        return next(pid for pid in self.processes() if _innermost_id(pid) == 1)

    def processes(self) -> list[int]:
        """The processes of this namespace, by their ids outside; those of namespaces within it are not counted."""
        if not self.path.exists():
            return []
        name = self.path.read_text().strip()
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _namespace_of(pid) == name]

    def signal(self, signum: int) -> None:
        """Send a signal to every process of the namespace."""
        for pid in self.processes():
            _kill(pid, signum)

    def kill(self) -> None:
        """SIGKILL everything in the namespace and in those within it; returns when nothing is left."""
        self.signal(signal.SIGKILL)
        wait_until(lambda: not self.processes(), 20, f"the processes of {self.path.name} to end")
        self.path.unlink(missing_ok=True)

    def stop(self) -> None:
        """SIGSTOP everything in the namespace; returns when nothing runs."""

        def all_stopped() -> bool:
            self.signal(signal.SIGSTOP)
            return all(_state(pid) in "TZ" for pid in self.processes())

        wait_until(all_stopped, 20, f"the processes of {self.path.name} to stop")


def _state(pid: int) -> str:
    """R running, S sleeping, T stopped, Z ended but not yet waited for, or gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except OSError:
        return "Z"


def _innermost_id(pid: int) -> int | None:
    """The id of a process in the namespace that it is in; None when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[-1]) for line in lines if line.startswith("NSpid:"))


def _namespace_of(pid: int) -> str | None:
    """The PID namespace of a process; None when it has just ended or is a zombie."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def _kill(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return
