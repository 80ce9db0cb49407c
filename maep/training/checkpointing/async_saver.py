"""Asynchronous saves: the training goes on while its checkpoint is copied, written and committed.

    the training        save() ── forward ── before_update() ── backward, step ── forward …
    a thread a rank        └─ copy ──────────────┘ write, hash, fsync ─ agree ─ rank 0 commits, prunes ─ all know

The tensors change only in an optimizer step, so the training waits for the copy just before the next one. The ranks'
threads speak over a process group of their own. At most one save is under way.
"""

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from maep.runtime.errors import PeerLost, UserError
from maep.storage.manifests import CheckpointManifest, FileEntry
from maep.storage.sealed import seal_directory
from maep.storage.tensor_files import HostBuffer
from maep.training.checkpointing.directory import Retention, checkpoint_path, prune
from maep.training.checkpointing.training_state import TrainingState
from maep.training.distributed.world import world


@dataclass
class Save:
    """One save under way or done: seconds that the training waited for it, and that it took in the background."""

    path: Path
    manifest: CheckpointManifest
    blocked: float = 0.0
    background: float = 0.0
    problem: str | None = None
    error: BaseException | None = None
    copied: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


class Saver:
    """Saves a training's state into `directory`. Every rank has one and makes the same calls on it."""

    def __init__(self, directory: Path, state: TrainingState, keep: Retention, timeout: float) -> None:
        """timeout: seconds that ranks wait for one another."""
        self.directory, self.state, self.keep = directory, state, keep
        self.good: Path | None = None
        self._current: Save | None = None
        self._unreported: Save | None = None  # finished, and not yet in the metrics
        self._buffer = HostBuffer()
        self._group = None
        if world().size > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._stream = torch.cuda.Stream() if torch.cuda.is_initialized() else None  # not where CPUs train beside a GPU

    @property
    def latest(self) -> Path | None:
        """The checkpoint under way, else the last complete one that is known here."""
        return self._current.path if self._current is not None else self.good

    def save(self, manifest: CheckpointManifest, *, within: float | None = None) -> bool:
        """Begin to save the step that the manifest names; waits for the one before, for at most `within` seconds.

        Returns whether it has begun. Raises what `finish` raises, for the one before.
        """
        started = time.perf_counter()
        if not self.finish(within):
            return False
        save = Save(checkpoint_path(self.directory, manifest.step), manifest)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        save.thread = threading.Thread(target=self._work, args=(save,), name="save", daemon=True)
        save.thread.start()
        self._current = save
        save.blocked = time.perf_counter() - started
        return True

    def before_update(self) -> None:
        """Wait until the state is in memory; the optimizer must not step before."""
        if self._current is not None and not self._current.copied.is_set():
            started = time.perf_counter()
            self._current.copied.wait()
            self._current.blocked += time.perf_counter() - started

    @property
    def has_failed(self) -> bool:
        """Whether the save under way is known to have failed; ranks that agree on it then call `finish`."""
        return self._current is not None and (self._current.problem is not None or self._current.error is not None)

    def finish(self, within: float | None = None) -> bool:
        """Wait for the save under way, for at most `within` seconds; returns whether none is under way now.

        Raises UserError, on every rank, when any rank could not write; earlier checkpoints are untouched. Raises
        PeerLost when another rank is gone.
        """
        save = self._current
        if save is None or save.thread is None:
            return True
        save.thread.join(within)
        if save.thread.is_alive():
            return False
        self._current = None
        if save.error is not None:
            raise save.error
        if save.problem is not None:
            raise UserError(f"{save.path}: cannot be written: {save.problem}; earlier checkpoints are untouched")
        self._unreported, self.good = save, save.path
        return True

    def metrics(self) -> dict[str, float]:
        """Seconds of the last finished save, once."""
        if self._current is not None and self._current.thread is not None and not self._current.thread.is_alive():
            if self.has_failed:
                return {}
            self.finish()
        save, self._unreported = self._unreported, None
        return {} if save is None else {"save_blocked_seconds": save.blocked, "save_seconds": save.background}

    # in the background

    def _work(self, save: Save) -> None:
        started = time.perf_counter()
        try:
            with torch.cuda.stream(self._stream) if self._stream else nullcontext():
                self._buffer.fill(self.state.pieces(world().rank, world().size))
            save.copied.set()
            save.problem = self._write(save)
        except BaseException as error:  # noqa: BLE001 (raised by `finish`, in the training's own thread)
            lost = isinstance(error, RuntimeError) and self._group is not None
            save.error = PeerLost(f"a process was lost while {save.path} was saved") if lost else error
        finally:
            save.copied.set()
            save.background = time.perf_counter() - started

    def _write(self, save: Save) -> str | None:
        """Write this rank's part and commit the whole; returns what went wrong on any rank, to all of them."""
        leads, temporary = world().rank == 0, save.path.with_name(f".tmp-{save.path.name}")
        problem = _try(lambda: _make_empty(temporary)) if leads else None
        problem = self._first(problem)
        if problem is None:
            name = f"rank-{world().rank:04d}-of-{world().size:04d}.safetensors"
            entries: list[FileEntry] = []
            problem = _try(lambda: entries.append(self._buffer.write(temporary / name)))
            files = {name: entry for name, written in self._exchange((name, entries)) for entry in written}
            problem = self._first(problem)
        if problem is None:
            if leads:
                problem = _try(lambda: seal_directory(temporary, save.path, save.manifest, files))
            problem = self._first(problem)
        if leads:
            if problem is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                prune(self.directory, self.keep)
        return problem

    def _exchange(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * world().size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _first(self, problem: str | None) -> str | None:
        """The first rank's problem, the same on all."""
        return next((each for each in self._exchange(problem) if each), None)


def _make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _try(work: Callable[[], object]) -> str | None:
    """Do it; returns what the system says when it cannot be done."""
    try:
        work()
    except OSError as error:
        return error.strerror or str(error)
    return None
