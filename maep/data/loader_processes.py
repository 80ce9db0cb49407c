"""The processes that load a training's images: how they start, that they outlive a signal, and when one was lost."""

import signal
import warnings
from functools import cache
from multiprocessing import get_context
from typing import Any

import torch

from maep.runtime.console import say
from maep.runtime.cores import task_cores
from maep.runtime.unwinding import SIGNALS

LOADER_LOST = (
    "a process that loads images was killed (out of memory, or of the shared memory that a container has?); "
    "data.workers=0 needs least"
)
# What they all import. The fork server does it once, and they share its memory: each alone would take a second or
# two of CPU, and 150 MB instead of 8. A server that runs already, as a build's does, stays as it is.
PRELOADED = ["maep.data.pairs", "maep.data.labelled_batches"]


def loader_processes(workers: int) -> dict[str, Any]:
    """The options of a `DataLoader` that loads in so many processes; 0: in this one."""
    if not workers:
        return {"num_workers": 0}
    _say_if_many(workers)
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return {"num_workers": workers, "multiprocessing_context": context, "worker_init_fn": _ignore_signals}


@cache
def _say_if_many(workers: int) -> None:
    """Once, where torch warns twice of each loader: of a robust training there is one at every check."""
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    if workers > task_cores():
        say(f"data.workers={workers}: more than this task has cores ({task_cores()}), so loading and computing share")


def _ignore_signals(_worker: int) -> None:
    """Loader workers outlive the signals that ask the trainer to save."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    torch.set_num_threads(1)


def is_loader_loss(error: BaseException) -> bool:
    """Whether torch says that a loader's process died; by a signal of the kernel, so wherever this process is."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
