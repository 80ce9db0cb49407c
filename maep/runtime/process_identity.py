"""Which process this is, among all that write to one file system; the standard library alone.

Neither a host's name nor a process's number tells that: cloned nodes and containers share names, and every container
counts its processes from 1. An identity is `PROCESS-MACHINE-START`: the number; 8 hex digits of the kernel's boot and
the PID namespace; and when it began, in clock ticks after that boot, as numbers come again.
"""

import os
import re
import secrets
from functools import cache
from hashlib import sha256
from pathlib import Path

IDENTITY = re.compile(r"(?P<process>[1-9]\d{0,8})-(?P<machine>[0-9a-f]{8})-(?P<start>\d+)")
BOOT, NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


def this_process() -> str:
    """The identity of this process: no other one has it, at any time, on any machine."""
    process = os.getpid()
    return f"{process}-{this_machine()}-{start_ticks(process) or 0}"


@cache
def this_machine() -> str:
    """8 hex digits that the processes have in common which see each other under the same numbers.

    Where the kernel does not tell they are random, so that no process is taken for one of this machine.
    """
    try:
        parts = BOOT.read_text(encoding="utf-8").strip(), os.readlink(NAMESPACE)
    except OSError:
        return secrets.token_hex(4)
    return sha256(" ".join(parts).encode()).hexdigest()[:8]


def has_ended(identity: str) -> bool:
    """Whether a process was one of this machine and is no more; False where that cannot be known from here."""
    match = IDENTITY.fullmatch(identity)
    if match is None or match["machine"] != this_machine():
        return False
    process = int(match["process"])
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives and is another user's, of whom /proc may show nothing (hidepid)
    return start_ticks(process) not in (None, int(match["start"]))


def start_ticks(process: int) -> int | None:
    """When a process began, in clock ticks after the boot; 0 for one that has ended and is not yet waited for.

    None where /proc does not show it.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # proc(5): the state is the 3rd field, the first after the process's name, and starttime the 22nd.
    return 0 if fields[0] in "ZX" else int(fields[19])
