"""How long work takes: by the clock on the wall, by the accelerator's own events, and how long that was busy."""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MATMUL = 2048  # rows: large enough that a CPU reaches its peak, small enough for a few repetitions a second
MATMUL_ON_GPU = 4 * MATMUL  # a GPU needs more work than that to fill all its units
LEAST = 3  # repetitions at least, for a median
MOST = 200  # calls queued at a time: a GPU's queue holds about a thousand launches, and a median needs no more
WARM_UP = 3  # calls on an accelerator: the first compiles and fills its memory pool, the next tune
PROFILED = 5  # calls whose kernels are counted: of the same work each, so a few do

Work = Callable[[], object]


def synchronize() -> None:
    """Wait for the accelerator's work, if there is one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds_of(work: Work, budget: float) -> float:
    """Median seconds of `work`, after one warm-up, over repetitions that fill `budget` seconds (at least 3).

    The device is idle before each: for work of the host, and for the device's where the host is the device.
    """
    work()
    synchronize()
    seconds: list[float] = []
    while len(seconds) < LEAST or sum(seconds) < budget:
        seconds.append(_wall(work))
    return statistics.median(seconds)


def _wall(work: Work) -> float:
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def queued_seconds_of(work: Work, budget: float) -> float:
    """Seconds of `work` on a CUDA device, one call after the other without a pause, as a stage makes them.

    By its events, between the ends of calls that are queued, so that what the host takes to launch counts only where
    the device waits for it.
    """
    for _ in range(WARM_UP):
        work()
    synchronize()
    count = min(MOST, max(LEAST, int(budget / _wall(work))))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in pairwise(marks)) / 1000


def busy_seconds(work: Work) -> float:
    """Seconds of a CUDA device's time that one call of `work` takes: when any kernel or copy of it ran.

    By torch's profiler, which delays launches and not kernels: compare it with a time that was taken without it.
    Raises RuntimeError where the profiler sees no kernel.
    """
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            work()
        synchronize()
    assert profiler.profiler is not None
    spans = [
        (event.start_ns(), event.end_ns())
        for event in profiler.profiler.kineto_results.events()
        # Annotations stand on the device's time line too; they cover the gaps between their kernels.
        if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()
    ]
    if not spans:
        raise RuntimeError("torch's profiler saw no kernel on the device")
    return covered(spans) / 1e9 / PROFILED


def covered(spans: Sequence[tuple[int, int]]) -> int:
    """Length of the union of spans (start, end)."""
    total, reached = 0, min(start for start, _ in spans)
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def beside_matmul(work: Work, dtype: torch.dtype, device: str, budget: float) -> tuple[float, float]:
    """Seconds of `work`, and FLOP/s of a square matrix product: what the machine's arithmetic can do meanwhile.

    On a CPU the two are called in turn: its clock and its neighbours change within seconds, and a share of a limit that
    was measured before the work says as much of them as of the work.
    """
    size = MATMUL_ON_GPU if device == "cuda" else MATMUL
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product, flops = lambda: a @ b, 2 * size**3
    if device == "cuda":
        return queued_seconds_of(work, budget), flops / queued_seconds_of(product, budget / 4)
    product()
    work()
    seconds: list[float] = []
    products: list[float] = []
    while len(seconds) < LEAST or sum(seconds) < budget:
        while sum(products) <= sum(seconds) / 4:
            products.append(_wall(product))
        seconds.append(_wall(work))
    return statistics.median(seconds), flops / statistics.median(products)
