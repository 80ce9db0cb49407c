"""How many cores a task has, and how many worker processes they take."""

import os
from pathlib import Path

MOST_WORKERS = 16  # of one process: so many feed any accelerator
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, `microseconds period`; the cores it sees may be far more


def task_cores() -> int:
    """Cores that this task may use, not the machine's: what its launcher, Slurm or a container left it; at least 1."""
    cores = [len(os.sched_getaffinity(0))]
    if (given := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdigit():  # binding is a matter of Slurm's configuration
        cores.append(int(given))
    quota = QUOTA.read_text(encoding="utf-8").split() if QUOTA.is_file() else []
    if len(quota) == 2 and quota[0].isdigit():
        cores.append(int(quota[0]) // int(quota[1]))
    return max(1, min(cores))


def worker_count(workers: int | None) -> int:
    """Worker processes of this process, as data.workers says.

    None: a core each, shared with the other ranks that a launcher started on the same cores (LOCAL_WORLD_SIZE), one
    core kept for this process itself; at least 1 and at most MOST_WORKERS.
    """
    if workers is not None:
        return workers
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, min(task_cores() // max(1, int(ranks) if ranks.isdigit() else 1) - 1, MOST_WORKERS))
