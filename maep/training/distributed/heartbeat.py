"""Heartbeats and the watchdog: where every rank is, and an end to a run that stalls.

    run.dir/heartbeats/rank-0003.json    {"rank", "node", "step", "phase", "time"}, renewed every few seconds

A rank whose file is no longer renewed is dead or frozen; one that stays in a phase is stuck there.
"""

import json
import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

import torch.distributed as dist

from maep.runtime.errors import PeerLost, UserError
from maep.runtime.exits import ExitCode
from maep.storage.documents import Document
from maep.training.distributed.world import wait_until, world

INTERVAL = 2.0  # seconds between two heartbeats: a lost rank is named within seconds, and thousands write little
PER_TIMEOUT = 20  # beats at least in the time after which a stall ends the run, where that is short
SILENT = 2.5  # intervals without a heartbeat: two were missed, and the shared file system had half of one to be late
PEER_LOSS = re.compile(r"gloo|NCCL|by peer|pair closure|remote worker|remote process exited|Broken pipe")
SLACK = 1.1  # the process group's own timeout, which raises an error instead of ending the process, comes first


class Phase(StrEnum):
    """What a rank is doing in a step."""

    START = "start"
    DATA = "data"
    COMPUTE = "compute"
    REDUCE = "reduce"  # waiting for the other ranks
    SAVE = "save"


WAITING = (Phase.REDUCE, Phase.SAVE)  # for others, who are then to blame


@dataclass(frozen=True)
class Beat(Document):
    """A heartbeat: where a rank is. step: the last one done. time: seconds since the epoch, by its node's clock, for
    people; the clocks of two nodes may differ, so nothing is decided by it.
    """

    rank: int = field(metadata={"low": 0})
    node: str
    step: int = field(metadata={"low": 0})
    phase: Phase
    time: float

    @property
    def name(self) -> str:
        """The rank and its node, in words."""
        return f"rank {self.rank} on node {self.node}"

    @property
    def position(self) -> str:
        """The step and phase, in words."""
        return f"in step {self.step + 1} ({self.phase})"


@dataclass(frozen=True)
class Sign:
    """A heartbeat as it was read. silence: seconds since it was written, on the clock of the file system."""

    beat: Beat
    silence: float


class Heartbeat:
    """Renews this rank's file while in context, and ends the process when `at` was not called for `timeout` seconds.

    directory: of the run. on_stall: called with the reason, on one line, before it ends the process. Time in which the
    process itself was stopped does not count.
    """

    def __init__(self, directory: Path, timeout: float, on_stall: Callable[[str], object] | None = None) -> None:
        self.directory, self.timeout, self.on_stall = directory / "heartbeats", timeout, on_stall
        self.interval = min(INTERVAL, timeout / PER_TIMEOUT)
        self._position = (0, Phase.START)
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

    def at(self, phase: Phase, step: int) -> None:
        """The rank goes on to a phase of the step after `step`."""
        self._position = (step, phase)

    def _beat(self) -> None:
        before, stuck, last = self._position, 0.0, time.monotonic()
        while not self._ended.wait(self.interval):
            elapsed, last = time.monotonic() - last, time.monotonic()
            stuck = stuck + min(elapsed, 2 * self.interval) if self._position is before else 0.0
            before = self._position
            self._write()
            if stuck > SLACK * self.timeout:
                self._end(stuck)

    def _write(self) -> None:
        step, phase = self._position
        beat = Beat(world().rank, socket.gethostname(), step, phase, time.time())
        path = self.directory / f"rank-{world().rank:04d}.json"
        temporary = path.with_name(f".tmp-{path.name}")
        try:
            temporary.write_text(json.dumps(beat.to_json()) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:  # a full disk must not end the training; the others report a missing heartbeat
            print(f"warning: {path}: cannot be written: {error.strerror}", file=sys.stderr)

    def _end(self, stuck: float) -> None:
        step, phase = self._position
        reason = (
            f"rank {world().rank} has been in step {step + 1} ({phase}) for {stuck:.0f} s, over "
            f"compute.stall_timeout={self.timeout:g} s: {self.blame()}; the same command goes on from the last "
            "checkpoint"
        )
        print(f"error: {reason}", file=sys.stderr, flush=True)
        try:
            if self.on_stall:
                self.on_stall(reason)
        finally:
            os._exit(ExitCode.PEER_LOST)  # the training's thread is stuck in a library and cannot be asked to end

    def blame(self) -> str:
        """Which ranks are dead, frozen or behind, in words, by the heartbeats."""
        signs = self.read()
        silent = [sign for sign in signs if self._is_silent(sign)]
        if silent:
            return "; ".join(
                f"{sign.beat.name} has given no sign of life for {sign.silence:.0f} s, {sign.beat.position}"
                for sign in silent
            )
        beats = [sign.beat for sign in signs]
        behind = [beat for beat in beats if beat.phase not in WAITING] or beats
        first = min(beat.step for beat in behind)
        return "; ".join(f"{beat.name} is stuck, {beat.position}" for beat in behind if beat.step == first)

    def _is_silent(self, sign: Sign) -> bool:
        return sign.silence > SILENT * self.interval

    def read(self) -> list[Sign]:
        """The heartbeats of this job's ranks; a rank without a file has been silent for ever."""
        now = self._file_system_time()
        return [_read(self.directory / f"rank-{rank:04d}.json", rank, now) for rank in range(world().size)]

    def _file_system_time(self) -> float:
        """Now, on the clock that the files' times are of; this node's where the disk takes no further file."""
        clock = self.directory / f".tmp-clock-{world().rank:04d}"
        try:
            clock.touch()
            return clock.stat().st_mtime
        except OSError:
            return time.time()

    def lost(self) -> PeerLost:
        """The error for a connection to another rank that broke: names the rank, once its heartbeats are missed."""
        wait_until(lambda: any(map(self._is_silent, self.read())), 3 * self.interval)
        return PeerLost(f"the connection to another process broke: {self.blame()}")


def is_peer_loss(error: BaseException) -> bool:
    """Whether an exception of torch says that another rank cannot be reached."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and PEER_LOSS.search(str(error)) is not None
    )


def _read(path: Path, rank: int, now: float) -> Sign:
    """A rank's file. A time from the future is as far back: the clock went back, and no beat has come since."""
    try:
        return Sign(Beat.read(path), abs(now - path.stat().st_mtime))
    except (UserError, OSError):
        return Sign(Beat(rank, "unknown", 0, Phase.START, -math.inf), math.inf)
