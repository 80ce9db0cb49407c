"""The processes of a job: they join through a store on rank 0, or the job ends and names who is missing.

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT come from the launcher: launch/local.py, SLURM's variables, torchrun.
"""

import atexit
import gc
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maep.config.schema import ComputeSettings
from maep.runtime.device import Readback, prepare_device
from maep.runtime.errors import PeerLost, UserError, fail
from maep.runtime.process_identity import this_process
from maep.storage.documents import read_fields
from maep.storage.json_files import parse_json

COMPLETE = "complete"  # the verdict where nothing is wrong
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POLL = 0.05  # seconds between two looks at a condition: short beside everything that is waited for, and no load
LAST_WORDS = 10.0  # seconds in which a verdict crosses the network and is read, before the store ends with rank 0
CONNECT = 5.0  # seconds for one connection to rank 0; a node that drops packets would hold it for minutes


@dataclass(frozen=True)
class World:
    """This process's rank, the number of processes, and the store on rank 0 that they share (None for one)."""

    rank: int
    size: int
    store: dist.Store | None = None


# A process joins one world, once, as torch has one default process group a process: a fact of the process, kept here.
_process_world: World | None = None


def world() -> World:
    """The joined world of this process; before joining, a world of its own."""
    return _process_world or World(0, 1)


@dataclass(frozen=True)
class Member:
    """What a process registers with as a rank: its node and process id, and how many processes it was started as.

    identity: which of all processes it is, as in `maep.runtime.process_identity`; nodes may have one name.
    """

    node: str
    process: int
    identity: str
    size: int

    @classmethod
    def from_text(cls, text: bytes | str) -> "Member":
        """From the store. Raises UserError for what another program wrote there."""
        source = "the processes' store"
        entries = parse_json(text, source)
        if not isinstance(entries, dict):
            fail(f"{source}: expected what a process registers with, found {str(entries)[:60]!r}")
        return read_fields(cls, entries, source)

    def to_text(self) -> str:
        """For the store."""
        return json.dumps(asdict(self))


def join_world(compute: ComputeSettings, nodes: Sequence[str] = ()) -> World:
    """Meet all processes that the launcher's environment counts, and make torch's process group of them.

    nodes: the node of each rank where the launcher knows it, to name one that never came. Called again, returns
    the same. Raises PeerLost, on every rank that came, after `compute.join_timeout` seconds without the others, and
    for a rank that joins twice or was started as part of another number of processes; UserError for a rank outside
    of WORLD_SIZE.
    """
    global _process_world
    if _process_world is None:
        rank, size = _number("RANK", "0"), _number("WORLD_SIZE", "1")
        if not 0 <= rank < size:
            fail(f"RANK={rank}: must be from 0 to {size - 1}, below WORLD_SIZE={size}")
        store = _meet(rank, size, compute.join_timeout, nodes) if size > 1 else None
        if store is not None:
            _make_group(rank, size, store, compute)
        _process_world = World(rank, size, store)
    return _process_world


def _number(variable: str, default: str) -> int:
    try:
        return int(os.environ.get(variable, default))
    except ValueError as error:
        raise UserError(f"{variable}={os.environ[variable]} (environment): must be a whole number") from error


def _make_group(rank: int, size: int, store: dist.Store, compute: ComputeSettings) -> None:
    """NCCL on CUDA devices, each rank's own; else gloo. Its operations give up after `compute.stall_timeout`."""
    device = prepare_device(compute, trains=True)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=compute.stall_timeout),
    )
    close_group_at_exit()


def close_group_at_exit() -> None:
    """Let a process that ends by itself end torch's process group first, and so wait for its threads.

    One of gloo's that still frees a tensor when the interpreter is gone aborts the process, with everything done.
    """
    atexit.register(_close_group)


def _close_group() -> None:
    gc.collect()  # trainings hold groups of their own, in cycles
    if dist.is_initialized():
        dist.destroy_process_group()


def _meet(rank: int, size: int, seconds: float, nodes: Sequence[str]) -> dist.Store:
    """Register with the store on rank 0 and wait for its verdict."""
    deadline = time.monotonic() + seconds
    store = _open_store(rank, seconds)
    member = Member(socket.gethostname(), os.getpid(), this_process(), size)
    first = Member.from_text(store.compare_set(f"rank-{rank}", "", member.to_text()))
    if first != member:
        raise PeerLost(f"rank {rank}: joined twice; the first is process {first.process} on node {first.node}")
    if rank == 0:
        problem = _roll_call(store, size, deadline, seconds, nodes)
        store.set("verdict", problem or COMPLETE)
        if problem:
            present = sum(store.check([f"rank-{r}"]) for r in range(1, size))
            wait_until(lambda: store.add("heard", 0) >= present, LAST_WORDS)
    else:
        problem = _verdict(store, rank, size, seconds)
    if problem:
        raise PeerLost(problem)
    return store


def _open_store(rank: int, seconds: float) -> dist.Store:
    """Rank 0 serves the store; the others look for it until `seconds` have passed."""
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), _number("MASTER_PORT", "29500")
    timeout = timedelta(seconds=seconds)
    if rank > 0 and not wait_until(lambda: _answers(host, port), seconds):
        raise PeerLost(f"rank 0 on node {host} did not join: no answer on port {port} within {seconds:g} s")
    try:
        return dist.TCPStore(host, port, is_master=rank == 0, wait_for_workers=False, timeout=timeout)
    except dist.DistError as error:
        what = f"port {port} cannot be used" if rank == 0 else f"rank 0 on node {host} went away"
        raise PeerLost(f"rank {rank} on node {socket.gethostname()}: {what}: {error}") from error


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=CONNECT).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Look at `condition` every few hundredths of a second; False when it is still false after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL)
    return True


def _roll_call(store: dist.Store, size: int, deadline: float, seconds: float, nodes: Sequence[str]) -> str:
    """Rank 0: wait until every rank has registered; returns what is wrong, or nothing."""
    keys = [f"rank-{rank}" for rank in range(size)]
    wait_until(lambda: store.check(keys), deadline - time.monotonic())
    missing = [rank for rank in range(size) if not store.check(keys[rank : rank + 1])]
    if missing:
        ranks = ", ".join(f"rank {rank}" + (f" on node {nodes[rank]}" if nodes else "") for rank in missing)
        return f"{ranks} did not join within {seconds:g} s; {size - len(missing)} of {size} processes did"
    for rank, key in enumerate(keys):
        member = Member.from_text(store.get(key))
        if member.size != size:
            return f"rank {rank} on node {member.node} was started as one of {member.size} processes, not of {size}"
    return ""


def _verdict(store: dist.Store, rank: int, size: int, seconds: float) -> str:
    """The other ranks: what is wrong by the verdict of rank 0, or nothing."""
    try:
        if not wait_until(lambda: store.check(["verdict"]), seconds + LAST_WORDS):
            return f"rank 0 did not say within {seconds + LAST_WORDS:g} s whether all had joined"
        verdict = store.get("verdict").decode()
        expected = Member.from_text(store.get("rank-0")).size
        store.add("heard", 1)
    except dist.DistError as error:
        raise PeerLost(f"rank 0 went away while the processes joined: {error}") from error
    if verdict != COMPLETE:
        return verdict
    if expected != size:
        return f"rank {rank}: was started as one of {size} processes, rank 0 as one of {expected}"
    return ""


def agree(values: list[float], device: torch.device) -> list[float]:
    """Sum a few numbers over all ranks."""
    return sum_over_ranks(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def sum_over_ranks(values: Tensor) -> Readback:
    """Begin to sum a few numbers over all ranks, the one tiny all-reduce of a step; the result has the sums.

    values: float64 [n] on the training's device; the sums take their place. NCCL sums them beside what is launched
    from now on; gloo has no queue, so on CPUs the others are waited for here.
    """
    if world().size == 1:
        return Readback(values)
    if values.device.type == "cpu":
        dist.all_reduce(values)
        return Readback(values)
    stream = _side_stream(values.device)
    work = dist.all_reduce(values, async_op=True)
    with torch.cuda.stream(stream):
        work.wait()
    return Readback(values, stream)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """For what must not hold up the computation, nor be held up by it. One, as torch hands out 32 in turn."""
    return torch.cuda.Stream(device)


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order."""
    if world().size == 1:
        return [value]
    gathered: list[Any] = [None] * world().size
    dist.all_gather_object(gathered, value)
    return gathered
