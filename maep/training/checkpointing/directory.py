"""Checkpoints on disk: every rank writes its part; one is whole or absent.

    checkpoints/step-000200/
        manifest.json                       a CheckpointManifest: step, samples, loss, model, …, and every file
        rank-0000-of-0002.safetensors …     tensors, see training_state.py and maep/storage/tensor_files.py

Any number of processes under any ZeRO stage resumes from them. `maep.training.checkpointing.async_saver` writes them.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maep.config.schema import TrainSettings
from maep.runtime.console import say
from maep.runtime.errors import UserError, fail
from maep.storage.manifests import CheckpointManifest
from maep.storage.sealed import MANIFEST, problem_with

if TYPE_CHECKING:  # who lists checkpoints needs no torch
    from maep.training.checkpointing.training_state import TrainingState

STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the `last` (at least 2), those of every `every` steps, the `best` by loss. 0: none.

    Of a training against the whole also the newest that was checked and the best of those.
    """

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
    committed = [p for p in directory.glob("step-*") if STEP.fullmatch(p.name) and (p / MANIFEST).is_file()]
    return sorted(committed, key=step_of)


def newest_whole(directory: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; damaged ones are passed over, each named.

    Raises UserError for one that a newer version of maep wrote.
    """
    for path in reversed(checkpoints(directory)):
        problem = problem_with(path)
        if problem is None:
            return path
        say(f"warning: checkpoint passed over: {problem}")
    return None


def prune(directory: Path, keep: Retention) -> None:
    """Remove the checkpoints that `keep` does not name, and what a killed save left behind."""
    committed = checkpoints(directory)
    survivors = {*committed[-keep.last :], *(p for p in committed if keep.every and step_of(p) % keep.every == 0)}
    manifests = manifests_in(directory)
    measured = {path: saved.loss for path, saved in manifests.items() if saved.loss is not None}
    survivors |= set(sorted(measured, key=measured.__getitem__)[: keep.best])
    survivors |= {path for path in (newest_checked(manifests), most_robust(manifests)) if path}
    for path in committed:
        if path not in survivors:
            shutil.rmtree(path)
    for path in directory.glob(".tmp-step-*"):
        shutil.rmtree(path)


def manifests_in(directory: Path) -> dict[Path, CheckpointManifest]:
    """The committed checkpoints with their manifests, the oldest first."""
    return {path: CheckpointManifest.read(path / MANIFEST) for path in checkpoints(directory)}


def newest_checked(saved: Mapping[Path, CheckpointManifest]) -> Path | None:
    """The last of the checkpoints, given the oldest first, that were attacked on held-out images."""
    return next((path for path in reversed(list(saved)) if (of := saved[path].robust) and of.checked), None)


def most_robust(saved: Mapping[Path, CheckpointManifest]) -> Path | None:
    """That whose averaged weights did best under attack on held-out images, of equal ones the newest."""
    progress = {path: manifest.robust for path, manifest in saved.items() if manifest.robust}
    scores = {path: of.averaged for path, of in progress.items() if of.checked and of.averaged is not None}
    return max(reversed(list(scores)), key=scores.__getitem__, default=None)


def most_robust_whole(directory: Path) -> Path | None:
    """The same of those in a directory whose files match their manifests; damaged ones are passed over, each named."""
    saved = manifests_in(directory)
    while (path := most_robust(saved)) and (problem := problem_with(path)):
        say(f"warning: checkpoint passed over: {problem}")
        del saved[path]
    return path


def back_to_checked(directory: Path) -> Path | None:
    """Remove the checkpoints after the newest that was attacked on held-out images; the newest whole one then."""
    checked = newest_checked(manifests_in(directory))
    for path in checkpoints(directory):
        if checked is None or step_of(path) > step_of(checked):
            shutil.rmtree(path)
    return newest_whole(directory)


def load_checkpoint(path: Path, state: "TrainingState", expected: CheckpointManifest) -> CheckpointManifest:
    """Restore a verified checkpoint into `state`; returns its manifest.

    expected: of this training's own; the architectures must agree. Collective under ZeRO-3. Raises UserError if
    it belongs to another model.
    """
    from maep.storage.tensor_files import ShardedTensors

    saved = CheckpointManifest.read(path / MANIFEST)
    theirs, ours = saved.architecture, expected.architecture
    for key in {**theirs, **ours}:
        if theirs.get(key) != ours.get(key):
            fail(f"{path}: is of another model: it has {key}={theirs.get(key)}, this run {ours.get(key)}")
    try:
        state.load(ShardedTensors(path))
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit this model: {error}") from error
    return saved
