"""How OpenMP's threads, which compute on a CPU, wait for one another. Imports nothing that would load them."""

import os
from collections.abc import Mapping, MutableMapping

# How often a thread looks for work before it sleeps. By default billions of times: two trainings on the same cores
# then take turns at looking, and reach together half of what one does alone. With these microseconds they lose nothing
# to each other, and one alone is as fast.
SPINS = "GOMP_SPINCOUNT", "1000"
POLICY = "OMP_WAIT_POLICY"
# What decides how the threads of a process work, for whoever compares times.
VARIABLES = ("OMP_NUM_THREADS", SPINS[0], POLICY)


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads sleep soon when they wait, unless the user has said how they wait. Before torch is imported.

    environment: of this process, or one that processes are started with.
    """
    if SPINS[0] not in environment and POLICY not in environment:
        environment[SPINS[0]] = SPINS[1]


def openmp_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those variables that are set."""
    return {name: environment[name] for name in VARIABLES if name in environment}
