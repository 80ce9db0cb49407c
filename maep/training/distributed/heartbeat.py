"""Heartbeats and the watchdog: where every rank is, and an end to a run that stalls.

    run.dir/heartbeats/rank-0003.json    {"rank", "node", "step", "phase", "time"}, renewed every few seconds

Phases: start, data, compute, reduce (waiting for the other ranks), save. A rank whose file is no longer renewed is
dead or frozen; one that stays in a phase is stuck there.
"""

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch.distributed as dist

from maep.runtime.errors import PeerLost
from maep.runtime.exits import ExitCode
from maep.training.distributed.world import wait_until, world

PHASES = ("start", "data", "compute", "reduce", "save")
INTERVAL = 2.0
SILENT = 2.5  # intervals
PEER_LOSS = re.compile(r"gloo|NCCL|by peer|pair closure|remote worker|remote process exited|Broken pipe")
SLACK = 1.1  # the process group's own timeout, which raises an error instead of ending the process, comes first

told_of_stalls: list[Callable[[str], object]] = []  # called with the reason before the watchdog ends the process


class Heartbeat:
    """Renews this rank's file while in context, and ends the process when `at` was not called for `timeout` seconds.

    directory: of the run. Time in which the process itself was stopped does not count.
    """

    def __init__(self, directory: Path, timeout: float) -> None:
        self.directory, self.timeout = directory / "heartbeats", timeout
        self.interval = min(INTERVAL, timeout / 20)
        self._now = (0, "start")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def at(self, phase: str, step: int) -> None:
        """The rank goes on to a phase of the step after `step`."""
        self._now = (step, phase)

    def _beat(self) -> None:
        seen, stuck, last = self._now, 0.0, time.monotonic()
        while not self._ended.wait(self.interval):
            elapsed, last = time.monotonic() - last, time.monotonic()
            stuck = stuck + min(elapsed, 2 * self.interval) if self._now is seen else 0.0
            seen = self._now
            self._write()
            if stuck > SLACK * self.timeout:
                self._end(stuck)

    def _write(self) -> None:
        step, phase = self._now
        node = socket.gethostname()
        facts = {"rank": world().rank, "node": node, "step": step, "phase": phase, "time": time.time()}
        path = self.directory / f"rank-{world().rank:04d}.json"
        temporary = path.with_name(f".tmp-{path.name}")
        try:
            temporary.write_text(json.dumps(facts) + "\n")
            temporary.replace(path)
        except OSError as error:  # a full disk must not end the training; a missing heartbeat is told by the others
            print(f"warning: {path}: cannot be written: {error.strerror}", file=sys.stderr)

    def _end(self, stuck: float) -> None:
        step, phase = self._now
        why = (
            f"rank {world().rank} has been in step {step + 1} ({phase}) for {stuck:.0f} s, over "
            f"compute.stall_timeout={self.timeout:g} s: {self.blame()}; the same command goes on from the last "
            "checkpoint"
        )
        print(f"error: {why}", file=sys.stderr, flush=True)
        try:
            for tell in told_of_stalls:
                tell(why)
        finally:
            os._exit(ExitCode.PEER_LOST)  # the training's thread is stuck in a library and cannot be asked to end

    def blame(self) -> str:
        """Which ranks are dead, frozen or behind, in words, as far as the heartbeats tell."""
        beats = self.read()
        silent = [beat for beat in beats if beat["silent"] > SILENT * self.interval]
        if silent:
            return "; ".join(
                f"{_name(beat)} has given no sign of life for {beat['silent']:.0f} s, {_place(beat)}" for beat in silent
            )
        behind = [beat for beat in beats if beat["phase"] not in ("reduce", "save")] or beats
        first = min(behind, key=lambda beat: beat["step"])["step"]
        return "; ".join(f"{_name(beat)} is stuck, {_place(beat)}" for beat in behind if beat["step"] == first)

    def read(self) -> list[dict[str, Any]]:
        """The heartbeats of this job's ranks, with the seconds of silence; a rank without a file counts as silent."""
        return [_read(self.directory / f"rank-{rank:04d}.json", rank) for rank in range(world().size)]

    def lost(self) -> PeerLost:
        """The error for a connection to another rank that broke: names the rank, once its heartbeats are missed."""
        wait_until(lambda: any(beat["silent"] > SILENT * self.interval for beat in self.read()), 3 * self.interval)
        return PeerLost(f"the connection to another process broke: {self.blame()}")


def is_peer_loss(error: BaseException) -> bool:
    """Whether an exception of torch says that another rank cannot be reached."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and PEER_LOSS.search(str(error)) is not None
    )


def _read(path: Path, rank: int) -> dict[str, Any]:
    try:
        beat: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {"rank": rank, "node": "unknown", "step": 0, "phase": "start", "silent": float("inf")}
    return beat | {"silent": time.time() - beat["time"]}


def _name(beat: dict[str, Any]) -> str:
    return f"rank {beat['rank']} on node {beat['node']}"


def _place(beat: dict[str, Any]) -> str:
    return f"in step {beat['step'] + 1} ({beat['phase']})"
