"""A real Slurm of four nodes on this machine: munge, mariadb, slurmdbd, slurmctld and four slurmd, all private.

Everything of an instance lives under one directory and in one PID namespace, whose first process holds the
instance's lock and reads from a pipe: when the owner of the pipe ends, however it ends, so does every process.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster.configuration import NODES, PORTS, Configuration
from tests.cluster.namespace import Namespace
from tests.cluster.node import Node
from tests.cluster.packages import why_not
from tests.cluster.waiting import wait_until

T = TypeVar("T")
HOME = Path("/run/maep-slurm")
FIRST_PORT = 20000
INSTANCES = 32
MACHINE = "mount --make-rshared / && read -r _"  # mounts made later in it reach the nodes


class ClusterError(RuntimeError):
    """The cluster could not be brought up, or did not become what was waited for; the message shows its state."""


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job: its state, why it waits, how often it was requeued, its nodes, and every field."""

    state: str
    reason: str
    restarts: int
    nodes: str
    fields: Mapping[str, str]


class Cluster:
    """One instance; `number` picks its directory, lock and ports."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.directory = HOME / str(number)
        self.configuration = Configuration(self.directory, FIRST_PORT + number * PORTS)
        self.machine = Namespace(self.directory / "machine")
        self.nodes = {name: Node(name, self.directory, self.machine) for name in NODES}
        self.environment = {**os.environ, "SLURM_CONF": str(self.configuration.path)}
        self._lifeline: int | None = None
        self._outside: list[subprocess.Popen[bytes]] = []

    @classmethod
    def up(cls, *, keep: bool = False) -> "Cluster":
        """Bring up an instance in the first free place, and return it with four idle nodes.

        keep: let it outlive this process; otherwise it ends with it. Raises ClusterError.
        """
        if reason := why_not():
            raise ClusterError(reason)
        for number in range(INSTANCES):
            cluster = cls(number)
            if (lock := cluster._lock()) is not None:
                try:
                    cluster._boot(lock, keep)
                finally:
                    os.close(lock)
                return cluster
        raise ClusterError(f"all {INSTANCES} places for a cluster are in use; see {HOME}")

    @classmethod
    def kept(cls) -> list["Cluster"]:
        """The instances on this machine that were brought up to stay."""
        return [cluster for cluster in map(cls, range(INSTANCES)) if cluster._stays.exists() and cluster.processes()]

    def down(self) -> None:
        """Kill every process of the instance and remove its directory; nothing to do when it is not up."""
        self.machine.signal(signal.SIGKILL)
        wait_until(lambda: not self.processes(), 20, "the cluster's processes to end")
        for process in self._outside:
            process.wait()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def processes(self) -> list[int]:
        """Every process of the instance: the daemons, the nodes and what runs on them."""
        return self.machine.processes() + [pid for node in self.nodes.values() for pid in node.processes()]

    def run(self, words: list[str], *, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of this cluster. With `check`, a failure is a ClusterError with its output."""
        options = {"capture_output": True, "text": True, "env": self.environment, **options}
        done = subprocess.run(words, check=False, **options)
        if check and done.returncode:
            raise ClusterError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a command as a user of this cluster."""
        return subprocess.Popen(words, env=self.environment, **options)

    def job(self, number: int | str) -> Job:
        """A job's present state, also after it has ended."""
        text = self.run(["scontrol", "--oneliner", "show", "job", str(number)]).stdout
        fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
        return Job(fields["JobState"], fields["Reason"], int(fields["Restarts"]), fields["NodeList"], fields)

    def states(self) -> dict[str, str]:
        """The nodes' states, as in {"n1": "IDLE", "n2": "DOWN*"}."""
        lines = self.run(["sinfo", "--Node", "--noheader", "--partition=main", "--Format=NodeList:9,StateLong"]).stdout
        return {name: state.upper() for name, state in map(str.split, lines.splitlines())}

    def set_state(self, node: str, state: str) -> None:
        """`down`, `drain` or `resume` a node, as an administrator does."""
        self.run(["scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=test"])

    def set_user_signal(self, enabled: bool) -> None:
        """Whether a job's own signal (sbatch --signal) is sent before it is preempted."""
        self.configuration.write_slurm(user_signal=enabled)
        self.run(["scontrol", "reconfigure"])

    def reset(self) -> None:
        """Cancel every job, and have all nodes idle and the user signal on again."""
        self.run(["scancel", "--user=root"])
        self.set_user_signal(True)
        self.repair()
        self.wait_for(self._idle, 90, "four idle nodes")

    def repair(self) -> None:
        """Have all nodes powered, thawed and in service again."""
        for node in self.nodes.values():
            node.thaw()
            node.power_on()
        self.wait_for(self._in_service, 90, "four nodes in service")

    def _in_service(self) -> bool:
        """Whether Slurm can use all nodes; resumes those that an administrator or a failure took out."""
        states = self.states()
        for name, state in states.items():
            if state.startswith(("DOWN", "DRAIN")) and not state.endswith("*"):
                self.set_state(name, "resume")
        return not any(
            state.startswith(("DOWN", "DRAIN", "UNKNOWN")) or state.endswith("*") for state in states.values()
        )

    def _idle(self) -> bool:
        return self._in_service() and set(self.states().values()) == {"IDLE"}

    @contextmanager
    def small_disk(self, path: Path, size: int) -> Iterator[Path]:
        """Mount an empty file system of `size` bytes at `path` on all nodes; yields where its files are seen here."""
        path.mkdir(parents=True)
        self.run(self.machine.inside(["mount", "-t", "tmpfs", "-o", f"size={size}", "maep", str(path)]))
        try:
            yield Path(f"/proc/{self.machine.init()}/root") / path.relative_to("/")
        finally:
            self.run(self.machine.inside(["umount", "--lazy", str(path)]))

    def grow_disk(self, path: Path, size: int) -> None:
        """Give the file system of `small_disk` more room."""
        self.run(self.machine.inside(["mount", "-o", f"remount,size={size}", str(path)]))

    def wait_for(self, predicate: Callable[[], T], timeout: float, what: str, every: float = 0.25) -> T:
        """What `predicate` returns once it is true; ClusterError with jobs, nodes and logs after `timeout` seconds."""
        try:
            return wait_until(predicate, timeout, what, every)
        except TimeoutError as error:
            raise ClusterError(f"{error}\n{self.describe()}") from error

    def describe(self) -> str:
        """Jobs, nodes and the ends of the daemons' logs."""
        asked = [self.run([name], check=False) for name in ("squeue", "sinfo")]
        told = [done.stdout + done.stderr for done in asked]
        for path in sorted((self.directory / "log").iterdir()):
            told.append("\n".join([f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-15:]]))
        return "\n".join(told)

    @property
    def _stays(self) -> Path:
        """Marks an instance that outlives whoever brought it up."""
        return self.directory / "stays"

    def _lock(self) -> int | None:
        """The lock of this place, held; None when it is taken or one of its ports is in use."""
        HOME.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(HOME / f"{self.number}.lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for port in range(self.configuration.port, self.configuration.port + PORTS):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            return None
        return lock

    def _boot(self, lock: int, keep: bool) -> None:
        """Start the namespace, the daemons in the order they need each other, and the nodes."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.configuration.write()
        try:
            self._start_machine(lock, keep)
            self._start_daemons()
            for node in self.nodes.values():
                node.power_on()
            self.wait_for(self._idle, 60, "four idle nodes")
        except BaseException:
            self.down()
            raise

    def _start_machine(self, lock: int, keep: bool) -> None:
        fifo = self.directory / "run" / "lifeline"
        os.mkfifo(fifo)
        both = os.open(fifo, os.O_RDWR)
        reader = both if keep else os.open(fifo, os.O_RDONLY)
        self._lifeline = None if keep else os.open(fifo, os.O_WRONLY)
        if keep:
            self._stays.touch()
        with (self.directory / "log" / "machine.out").open("ab") as log:
            self._outside.append(self.machine.start(MACHINE, log=log, stdin=reader, keep_open=(lock,)))
        for descriptor in {both, reader}:
            os.close(descriptor)

    def _start_daemons(self) -> None:
        run, etc, log = (self.directory / name for name in ("run", "etc", "log"))
        self._daemon([
            "munged", "--foreground", "--force", f"--key-file={etc}/munge.key", f"--socket={run}/munge.sock",
            f"--pid-file={run}/munged.pid", f"--log-file={log}/munged.log", f"--seed-file={run}/munge.seed",
        ])  # fmt: skip
        self._daemon([
            "mariadbd", "--no-defaults", "--user=root", f"--datadir={self.directory}/database",
            f"--socket={run}/database.sock", f"--pid-file={run}/mariadbd.pid", "--skip-networking",
            "--skip-grant-tables", "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M",
        ])  # fmt: skip
        for name in ("munge.sock", "database.sock"):
            self.wait_for((run / name).exists, 30, name)
        self._daemon(["slurmdbd", "-D"], MYSQL_UNIX_PORT=f"{run}/database.sock")
        adding = ["sacctmgr", "--immediate", "add", "cluster", "maep"]
        self.wait_for(lambda: not self.run(adding, check=False).returncode, 30, "slurmdbd")
        self._daemon(["slurmctld", "-D", "-f", str(self.configuration.path)])
        self.wait_for(lambda: not self.run(["scontrol", "ping"], check=False).returncode, 30, "slurmctld")

    def _daemon(self, words: list[str], **environment: str) -> None:
        """Start a daemon inside the namespace."""
        with (self.directory / "log" / f"{words[0]}.out").open("ab") as log:
            process = subprocess.Popen(
                self.machine.inside(words), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**self.environment, **environment},
            )  # fmt: skip
        self._outside.append(process)
