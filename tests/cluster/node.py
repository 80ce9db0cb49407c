"""One node of the cluster: a slurmd in namespaces of its own, which can lose power or freeze."""

import signal
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.namespace import Namespace

SCRIPT = "hostname {name} && mount --bind {etc}/hosts /etc/hosts && slurmd -D -N {name} -f {etc}/slurm.conf; exit $?"


@dataclass(frozen=True)
class Node:
    """A node by its name in Slurm; `machine` is the namespace that its instance lives in."""

    name: str
    directory: Path
    machine: Namespace

    @property
    def _namespace(self) -> Namespace:
        return Namespace(self.directory / "nodes" / self.name)

    def power_on(self) -> None:
        """Start its slurmd; nothing to do when it is running."""
        if self.processes():
            return
        script = SCRIPT.format(name=self.name, etc=self.directory / "etc")
        with (self.directory / "log" / f"{self.name}.out").open("ab") as log:
            self._namespace.start(script, parent=self.machine, log=log)

    def power_off(self) -> None:
        """SIGKILL to every process on the node at once; returns when none is left."""
        self._namespace.kill()

    def freeze(self) -> None:
        """SIGSTOP to every process on the node, its slurmd among them."""
        self._namespace.stop()

    def thaw(self) -> None:
        """Let a frozen node go on."""
        self._namespace.signal(signal.SIGCONT)

    def ranks(self) -> list[int]:
        """The ids, outside, of the training or worker processes that jobs run on the node."""
        return [pid for pid in self.processes() if _is_rank(_command_line(pid))]

    def processes(self) -> list[int]:
        """The ids, outside, of the processes on the node; none when it is off."""
        return self._namespace.processes()


def _command_line(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _is_rank(words: list[bytes]) -> bool:
    """Submitit's task; not srun, which names it too."""
    return b"submitit.core._submit" in words and b"python" in words[0].rpartition(b"/")[2]
