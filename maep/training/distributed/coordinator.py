"""Rank 0 leads, the others follow: stage records, locks and directories are one process's business.

Under SLURM every rank runs `lead_or_follow` with the same settings. `launch/local.py` leads from outside instead: it
decides in its own process and starts ranks that only train.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist

from maep.config.load import to_yaml
from maep.config.schema import Settings
from maep.runtime.errors import PeerLost, fail
from maep.storage.atomic import digest
from maep.training.distributed.world import LAST_WORDS, World, wait_until

Launcher = Callable[[str, Settings], None]
NOTHING_MORE = ""
POLL = 0.2


def lead_or_follow(world: World, settings: Settings, lead: Callable[[Launcher], None], train: Launcher) -> None:
    """Rank 0 calls `lead(launch)`; when that calls `launch(name, settings)`, every rank calls `train(name, settings)`.

    world: from `join_world`. settings: the same on every rank. lead: decides what to train, as
    `lambda launch: run_pipeline(settings, stage, launch)`. train: runs a training stage as this rank, as
    `maep.training.worker.run_training`. The others wait, however long rank 0 takes to decide, and return when it has
    nothing more to train. What `lead` or `train` raises goes through. Raises PeerLost when rank 0 is gone, UserError
    when a rank has other settings than rank 0.
    """
    if world.store is None:
        lead(train)
    elif world.rank == 0:
        _lead(world, world.store, lead, train)
    else:
        _follow(world.store, settings, train)


def _lead(world: World, store: dist.Store, lead: Callable[[Launcher], None], train: Launcher) -> None:
    orders = 0

    def launch(name: str, settings: Settings) -> None:
        nonlocal orders
        store.set(f"order-{orders}", f"{name} {_fingerprint(settings)}")
        orders += 1
        train(name, settings)

    try:
        lead(launch)
    finally:
        store.set(f"order-{orders}", NOTHING_MORE)
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
    """Tell rank 0 that it need not wait for this process; if it is gone already, that is told elsewhere."""
    with suppress(dist.DistError):
        store.add("left", 1)


def _fingerprint(settings: Settings) -> str:
    return digest(to_yaml(settings))
