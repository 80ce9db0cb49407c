"""The processes of a job: they join through a store on rank 0, or the job ends and names who is missing.

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT come from the launcher: launch/local.py, SLURM's variables, torchrun.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from maep.config.schema import ComputeSettings
from maep.runtime.device import prepare_device
from maep.runtime.errors import PeerLost, UserError, fail

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POLL = 0.05
LAST_WORDS = 10.0


@dataclass(frozen=True)
class World:
    """This process's rank, the number of processes, and the store on rank 0 that they share (None for one)."""

    rank: int
    size: int
    store: dist.Store | None = None


_joined: World | None = None


def world() -> World:
    """The joined world of this process; before joining, a world of its own."""
    return _joined or World(0, 1)


def join_world(compute: ComputeSettings, nodes: Sequence[str] = ()) -> World:
    """Meet all processes that the launcher's environment counts, and make torch's process group of them.

    nodes: the node of each rank where the launcher knows it, to name one that never came. Called again, returns
    the same. Raises PeerLost, on every rank that came, after `compute.join_timeout` seconds without the others, and
    for a rank that joins twice or was started as part of another number of processes; UserError for a rank outside
    of WORLD_SIZE.
    """
    global _joined
    if _joined is None:
        rank, size = _number("RANK", "0"), _number("WORLD_SIZE", "1")
        if not 0 <= rank < size:
            fail(f"RANK={rank}: must be from 0 to {size - 1}, below WORLD_SIZE={size}")
        store = _meet(rank, size, compute.join_timeout, nodes) if size > 1 else None
        if store is not None:
            _make_group(rank, size, store, compute)
        _joined = World(rank, size, store)
    return _joined


def _number(variable: str, default: str) -> int:
    try:
        return int(os.environ.get(variable, default))
    except ValueError as error:
        raise UserError(f"{variable}={os.environ[variable]} (environment): must be a whole number") from error


def _make_group(rank: int, size: int, store: dist.Store, compute: ComputeSettings) -> None:
    """NCCL on CUDA devices, else gloo; its operations give up after `compute.stall_timeout`."""
    dist.init_process_group(
        "nccl" if prepare_device(compute) == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=compute.stall_timeout),
    )


def _meet(rank: int, size: int, seconds: float, nodes: Sequence[str]) -> dist.Store:
    """Register with the store on rank 0 and wait for its verdict."""
    deadline = time.monotonic() + seconds
    store = _open_store(rank, seconds)
    mine = json.dumps({"node": socket.gethostname(), "process": os.getpid(), "size": size})
    first = store.compare_set(f"rank-{rank}", "", mine).decode()
    if first != mine:
        told = json.loads(first)
        raise PeerLost(f"rank {rank}: joined twice; the first is process {told['process']} on node {told['node']}")
    if rank == 0:
        problem = _roll_call(store, size, deadline, seconds, nodes)
        store.set("verdict", problem or "complete")
        if problem:
            came = sum(store.check([f"rank-{r}"]) for r in range(1, size))
            wait_until(lambda: store.add("heard", 0) >= came, LAST_WORDS)
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
        socket.create_connection((host, port), timeout=5).close()
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
        named = ", ".join(f"rank {rank}" + (f" on node {nodes[rank]}" if nodes else "") for rank in missing)
        return f"{named} did not join within {seconds:g} s; {size - len(missing)} of {size} processes did"
    for rank, key in enumerate(keys):
        told = json.loads(store.get(key))
        if told["size"] != size:
            return f"rank {rank} on node {told['node']} was started as one of {told['size']} processes, not of {size}"
    return ""


def _verdict(store: dist.Store, rank: int, size: int, seconds: float) -> str:
    """The other ranks: what rank 0 found wrong, or nothing."""
    try:
        if not wait_until(lambda: store.check(["verdict"]), seconds + LAST_WORDS):
            return f"rank 0 did not say within {seconds + LAST_WORDS:g} s whether all had joined"
        verdict = store.get("verdict").decode()
        expected = json.loads(store.get("rank-0"))["size"]
        store.add("heard", 1)
    except dist.DistError as error:
        raise PeerLost(f"rank 0 went away while the processes joined: {error}") from error
    if verdict == "complete" and expected != size:
        return f"rank {rank}: was started as one of {size} processes, rank 0 as one of {expected}"
    return "" if verdict == "complete" else verdict


def agree(values: list[float], device: torch.device) -> list[float]:
    """Sum a few numbers over all ranks: the one tiny all-reduce of a step."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    if world().size > 1:
        dist.all_reduce(tensor)
    return tensor.tolist()


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order."""
    if world().size == 1:
        return [value]
    gathered: list[Any] = [None] * world().size
    dist.all_gather_object(gathered, value)
    return gathered
