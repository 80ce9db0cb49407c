"""Where a process computes, and how it uses its host: threads, memory kept when it is freed, copies that overlap."""

import ctypes
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from maep.runtime.console import say
from maep.runtime.errors import UserError, fail

# glibc's <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST_INT = 2**31 - 1  # the threshold that is never reached: freed memory is never given back
GROWTH = 2**26  # bytes that the heap grows by at least: a batch of activations in a few steps, nothing beside a model
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux names it: x86's two, and ARM's


class DeviceSettings(Protocol):
    """Of the section `compute` of the settings, what decides where and how a process computes."""

    device: str
    threads: int
    tf32: str
    cudnn_benchmark: bool


def prepare_device(compute: DeviceSettings, *, trains: bool = False) -> torch.device:
    """This process's own device, with its threads, memory and arithmetic made ready. Before anything is computed.

    trains: for a training, which compute.tf32 is about; attacks and verdicts have torch's own arithmetic.
    Of several CUDA devices a rank takes the one of its place on the node (LOCAL_RANK), as the current one from then on.
    Raises UserError if cuda is asked for and there is none.
    """
    if compute.device == "cuda" and not torch.cuda.is_available():
        fail("compute.device=cuda: no CUDA device here; choose cpu or auto")
    if compute.threads:
        torch.set_num_threads(compute.threads)
    if compute.device == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
        return torch.device("cpu")
    device = torch.device("cuda", own_index(torch.cuda.device_count()))
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high" if trains and compute.tf32 == "all" else "highest")
    torch.backends.cudnn.allow_tf32 = not (trains and compute.tf32 == "none")
    torch.backends.cudnn.benchmark = compute.cudnn_benchmark
    return device


def own_index(count: int) -> int:
    """Which of the `count` CUDA devices that this process sees is its own.

    A task that Slurm bound to one device sees only that, as number 0, whatever its place on the node.
    Raises UserError for a LOCAL_RANK that is no number.
    """
    place = os.environ.get("LOCAL_RANK", "0")
    if not place.isdecimal():
        raise UserError(f"LOCAL_RANK={place} (environment): must be a whole number")
    return int(place) % count


def fork_rng(*modules: nn.Module) -> AbstractContextManager[None]:
    """Within it, torch may be seeded: on the CPU and on the devices in use everything is as before after it.

    modules: what is going to draw, where it may be on another device than the current one. Other devices are left
    alone: torch would initialise every one that the process sees, and warn.
    """
    used = {torch.cuda.current_device()} if torch.cuda.is_initialized() else set()
    tensors: Iterable[Tensor] = chain.from_iterable(chain(each.parameters(), each.buffers()) for each in modules)
    used |= {tensor.device.index for tensor in tensors if tensor.device.type == "cuda"}
    return torch.random.fork_rng(devices=sorted(used))


def warn_of_slow_bf16(key: str, precision: str, device: torch.device) -> None:
    """Say that bf16 was chosen for a CPU which has none. key: of the setting that holds `precision`."""
    if precision == "bf16" and device.type == "cpu" and has_bf16() is False:
        say(
            f"warning: {key}=bf16: this CPU has no bf16 arithmetic, and takes up to a hundred times as long as with "
            f"{key}=fp32"
        )


def has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether this machine's CPU computes in bf16; None where the system does not say. cpuinfo: as Linux writes it."""
    if not cpuinfo.is_file():
        return None
    lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
    return any(name.strip() in ("flags", "Features") and BF16.intersection(words.split()) for name, _, words in lines)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; to a CUDA device from page-locked memory, so that nobody waits for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def wait_for(device: torch.device) -> None:
    """Until all that was launched is done: before a time is taken."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Readback:
    """Numbers on their way from a device to the host: begun here, there when they are asked for.

    What is launched between the two runs meanwhile; the reading waits only for what was launched before.
    """

    def __init__(self, values: Tensor, stream: torch.cuda.Stream | None = None) -> None:
        """values: [n]. stream: the CUDA stream that the copy runs on; default: the current one."""
        self._host, self._copied = values, None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._copied = torch.cuda.Event()
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream(values.device))
            with torch.cuda.stream(stream):
                self._host.copy_(values, non_blocking=True)
                self._copied.record()
            values.record_stream(stream or torch.cuda.current_stream(values.device))

    def tolist(self) -> list[float]:
        """The numbers, once they have arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers


@cache
def keep_freed_memory() -> None:
    """Let malloc reuse freed tensors. Without glibc, nothing is changed.

    glibc returns a large block to the kernel when it is freed, and the next one is zeroed again page by page: a
    third of a training step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT), (M_TOP_PAD, GROWTH)):
            mallopt(parameter, value)
