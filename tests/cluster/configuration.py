"""The files of one private Slurm: slurm.conf, gres.conf, slurmdbd.conf and the nodes' hosts file."""

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template

NODES = ("n1", "n2", "n3", "n4")
PORTS = len(NODES) + 2

SLURM = Template("""\
ClusterName=maep
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$controller
SlurmctldPidFile=$directory/run/slurmctld.pid
SlurmctldLogFile=$directory/log/slurmctld.log
SlurmdPidFile=$directory/run/slurmd.%n.pid
SlurmdLogFile=$directory/log/slurmd.%n.log
SlurmdSpoolDir=$directory/spool/%n
StateSaveLocation=$directory/state
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$directory/run/munge.sock,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000,bf_interval=2,bf_continue
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$preemption
JobRequeue=1
KillWait=5
KillOnBadExit=1
SlurmdTimeout=10
MessageTimeout=10
TCPTimeout=2
MinJobAge=3600
FirstJobId=$first_job
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$database
AccountingStoragePass=$directory/run/munge.sock
GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=16000 Gres=gpu:2
NodeName=n[1-4] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$first_node-$last_node]
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=5 DefaultTime=10
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=10
PartitionName=cancels Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=0 DefaultTime=10
""")

ACCOUNTING = Template("""\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$database
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$directory/run/munge.sock
PidFile=$directory/run/slurmdbd.pid
LogFile=$directory/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
""")


@dataclass(frozen=True)
class Configuration:
    """Where one instance lives and which ports it uses: `PORTS` of them from `port`."""

    directory: Path
    port: int

    @property
    def path(self) -> Path:
        """slurm.conf: all that a client needs to know (as SLURM_CONF)."""
        return self.directory / "etc" / "slurm.conf"

    def write(self) -> None:
        """Make the directories and write every file, with a munge key of its own."""
        for name in ("etc", "run", "log", "state", "spool", "database", "gpu", "nodes"):
            (self.directory / name).mkdir(parents=True)
        for gpu in range(2):
            os.mknod(self.directory / "gpu" / f"nvidia{gpu}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        values = {"directory": self.directory, "database": self.port + 1}
        self._private("etc/slurmdbd.conf", ACCOUNTING.substitute(values).encode())
        self._private("etc/munge.key", os.urandom(128))
        (self.directory / "etc" / "gres.conf").write_text(
            f"AutoDetect=off\nName=gpu File={self.directory}/gpu/nvidia[0-1]\n"
        )
        hosts = "".join(f"127.0.1.{i} {name}\n" for i, name in enumerate(NODES, 1))
        (self.directory / "etc" / "hosts").write_text("127.0.0.1 localhost\n" + hosts)
        self.write_slurm(user_signal=True)

    def write_slurm(self, *, user_signal: bool) -> None:
        """Write slurm.conf, with or without the user signal before a preemption."""
        values = {
            "directory": self.directory, "controller": self.port, "database": self.port + 1,
            "first_node": self.port + 2, "last_node": self.port + 1 + len(NODES),
            "first_job": int(time.time()) % 60_000_000 + 1,
            "preemption": "SlurmctldParameters=preempt_send_user_signal" if user_signal else "# no user signal",
        }  # fmt: skip
        self.path.write_text(SLURM.substitute(values))

    def _private(self, name: str, content: bytes) -> None:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)
