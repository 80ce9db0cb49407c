"""Checkpoints on disk: every rank writes its part; one is whole or absent.

    checkpoints/step-000200/
        manifest.json                       facts (step, samples, loss, model, …) and every file's size and SHA-256
        rank-0000-of-0002.safetensors …     tensors, see training_state.py and maep/storage/tensor_files.py

Any number of processes under any ZeRO stage resumes from them. `maep.training.checkpointing.async_saver` writes them.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maep.config.schema import TrainSettings
from maep.runtime.console import say
from maep.runtime.errors import UserError, fail
from maep.storage.atomic import MANIFEST, problem_with, read_json
from maep.storage.tensor_files import ShardedTensors
from maep.training.checkpointing.training_state import TrainingState

STEP = re.compile(r"step-(\d+)")
DECIDES = ("model", "method", "rank")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the `last` (at least 2), those of every `every` steps, the `best` by loss. 0: none."""

    last: int
    every: int = 0
    best: int = 0

    @classmethod
    def of(cls, settings: TrainSettings) -> "Retention":
        """As the settings of a training say."""
        return cls(settings.keep_last, settings.keep_every, settings.keep_best)


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return directory / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """The step after which it was saved."""
    return int(checkpoint.name.split("-")[1])


def checkpoints(directory: Path) -> list[Path]:
    """Committed checkpoints, the oldest first."""
    found = [p for p in directory.glob("step-*") if STEP.fullmatch(p.name) and (p / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def newest_whole(directory: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; damaged ones are passed over, each named."""
    for path in reversed(checkpoints(directory)):
        problem = problem_with(path)
        if problem is None:
            return path
        say(f"warning: checkpoint passed over: {problem}")
    return None


def prune(directory: Path, keep: Retention) -> None:
    """Remove the checkpoints that `keep` does not name, and what a killed save left behind."""
    found = checkpoints(directory)
    kept = {*found[-keep.last :], *(path for path in found if keep.every and step_of(path) % keep.every == 0)}
    if keep.best:
        losses = {path: read_json(path / MANIFEST).get("loss") for path in found}
        known = [path for path in found if losses[path] is not None]
        kept |= set(sorted(known, key=lambda path: losses[path])[: keep.best])
    for path in found:
        if path not in kept:
            shutil.rmtree(path)
    for path in directory.glob(".tmp-step-*"):
        shutil.rmtree(path)


def load_checkpoint(path: Path, state: TrainingState, facts: dict[str, Any]) -> dict[str, Any]:
    """Restore a verified checkpoint into `state`; returns the facts of its manifest.

    facts: of this training; those that decide what its weights are must agree. Collective under ZeRO-3. Raises
    UserError if it belongs to another model.
    """
    saved: dict[str, Any] = read_json(path / MANIFEST)
    for key in DECIDES:
        if saved.get(key) != facts.get(key):
            fail(f"{path}: is of another model: {_difference(key, saved.get(key), facts.get(key))}")
    try:
        state.load(ShardedTensors(path))
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit this model: {error}") from error
    return saved


def _difference(key: str, saved: Any, ours: Any) -> str:
    """The first setting that differs, in words."""
    if isinstance(saved, dict) and isinstance(ours, dict):
        name = next(name for name in {**saved, **ours} if saved.get(name) != ours.get(name))
        return f"it has {key}.{name}={saved.get(name)}, this run {ours.get(name)}"
    return f"it has {key}={saved}, this run {ours}"
