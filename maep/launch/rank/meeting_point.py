"""Under which address the ranks of a SLURM job meet, on its first node."""

import os
import socket
from collections.abc import Sequence

from maep.launch.rank.environment import NODE_ADDRESS
from maep.runtime.errors import fail
from maep.training.distributed.world import wait_until

PATIENCE = 10.0  # seconds: a name server that is busy answers by then, also when all ranks of a large job ask at once


def meeting_point(nodes: Sequence[str]) -> str:
    """The name of the first node, or where that is Slurm's alone, the address at which Slurm itself reaches it.

    nodes: of the job, by Slurm's names; those of a job on one node meet without a network. Raises UserError where this
    node resolves none of these names.
    """
    first, address = nodes[0], os.environ.get(NODE_ADDRESS, "")
    names = list(dict.fromkeys(name for name in (first, address, "127.0.0.1" * (len(nodes) == 1)) if name))
    if not wait_until(lambda: any(map(_resolves, names)), PATIENCE):
        here = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        fail(
            f"node {first}: node {here} knows no address of it ({', '.join(names)}); have its name in DNS or "
            f"/etc/hosts, or an address as its NodeAddr in slurm.conf"
        )
    return next(filter(_resolves, names), names[0])


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except (OSError, UnicodeError):
        return False
