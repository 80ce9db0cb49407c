"""Rank 0 coordinates, the others follow: stage records, locks and directories are one process's business.

Under SLURM every rank calls `run_coordinated` with the same settings. `launch/local.py` coordinates from outside
instead: it decides in its own process and starts ranks that only train.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist

from maep.config.load import to_yaml
from maep.config.schema import Settings
from maep.runtime.digests import digest
from maep.runtime.errors import PeerLost, fail
from maep.training.distributed.world import LAST_WORDS, World, wait_until

Launcher = Callable[[str, Settings], None]
END = ""  # the order after which there is none
POLL = 0.2  # seconds between two looks for an order: they may come hours apart, and every look is a request to rank 0


def run_coordinated(world: World, settings: Settings, coordinate: Callable[[Launcher], None], train: Launcher) -> None:
    """Rank 0 calls `coordinate(launch)`; every `launch(name, settings)` in it makes all ranks call `train` with them.

    world: from `join_world`. settings: the same on every rank. coordinate: decides what to train, as
    `lambda launch: run_pipeline(settings, stage, launch)`. train: runs a training stage as this rank, as
    `maep.training.worker.run_training`. The others wait, however long rank 0 takes to decide, and return when it has
    nothing more to train. What `coordinate` or `train` raises goes through. Raises PeerLost when rank 0 is gone, and
    UserError when a rank has other settings than rank 0.
    """
    if world.store is None:
        coordinate(train)
    elif world.rank == 0:
        _coordinate(world, world.store, coordinate, train)
    else:
        _follow(world.store, settings, train)


def _coordinate(world: World, store: dist.Store, coordinate: Callable[[Launcher], None], train: Launcher) -> None:
    orders = 0

    def launch(name: str, settings: Settings) -> None:
        nonlocal orders
        store.set(f"order-{orders}", f"{name} {_fingerprint(settings)}")
        orders += 1
        train(name, settings)

    try:
        coordinate(launch)
    finally:
        store.set(f"order-{orders}", END)
        # The store ends with this process: leave last.
        wait_until(lambda: store.add("left", 0) == world.size - 1, LAST_WORDS)


def _follow(store: dist.Store, settings: Settings, train: Launcher) -> None:
    orders = 0
    try:
        while order := _await_order(store, f"order-{orders}"):
            orders += 1
            name, _, expected = order.partition(" ")
            if _fingerprint(settings) != expected:
                fail(f"{name}: this process has other settings than rank 0; start all with the same command")
            train(name, settings)
    finally:
        _leave(store)


def _await_order(store: dist.Store, key: str) -> str:
    try:
        while not store.check([key]):
            time.sleep(POLL)
        return store.get(key).decode()
    except dist.DistError as error:
        raise PeerLost("rank 0 is gone; it decides what is trained") from error


def _leave(store: dist.Store) -> None:
    """Sign off, so that rank 0 need not wait for this process; if it is gone already, that is reported elsewhere."""
    with suppress(dist.DistError):
        store.add("left", 1)


def _fingerprint(settings: Settings) -> str:
    return digest(to_yaml(settings))
