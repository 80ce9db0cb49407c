"""Where a process computes, and how it uses its host: threads, and memory that stays when it is freed."""

import ctypes

import torch

from maep.runtime.errors import fail

# glibc's <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST_INT = 2**31 - 1  # the threshold that is never reached: freed memory is never given back
GROWTH = 2**26  # bytes that the heap grows by at least: a batch of activations in a few steps, nothing beside a model


def prepare_device(device: str, threads: int) -> str:
    """`cuda` or `cpu`, with this process's threads and memory made ready for it. Before anything is computed.

    device, threads: as compute.device (`auto`, `cpu`, `cuda`) and compute.threads (0: torch's choice).
    Raises UserError if cuda is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        fail("compute.device=cuda: no CUDA device here; choose cpu or auto")
    if threads:
        torch.set_num_threads(threads)
    if device != "cpu" and torch.cuda.is_available():
        return "cuda"
    _keep_freed_memory()
    return "cpu"


def _keep_freed_memory() -> None:
    """Let malloc reuse freed tensors. Without glibc, nothing is changed.

    glibc returns a large block to the kernel when it is freed, and the next one is zeroed again page by page: a
    third of a training step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT), (M_TOP_PAD, GROWTH)):
            mallopt(parameter, value)
