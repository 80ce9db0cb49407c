"""Checkpoints on disk: every rank writes its part; one is whole or absent.

    checkpoints/step-000200/
        manifest.json                       a CheckpointManifest: step, samples, loss, model, …, and every file
        rank-0000-of-0002.safetensors …     tensors, see training_state.py and maep/storage/tensor_files.py

Any number of processes under any ZeRO stage resumes from them. `maep.training.checkpointing.async_saver` writes them.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maep.config.training_settings import TrainSettings
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
    return _newest_whole_of(checkpoints(directory))


def _newest_whole_of(paths: Sequence[Path]) -> Path | None:
    """The same of checkpoints that are given, the oldest first."""
    for path in reversed(paths):
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
            _remove(path)
    for path in directory.glob(".tmp-step-*"):
        shutil.rmtree(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint, which is whole or gone whenever this is cut off; `prune` removes what is left of it."""
    temporary = path.with_name(f".tmp-{path.name}")
    if temporary.exists():
        shutil.rmtree(temporary)
    path.rename(temporary)
    shutil.rmtree(temporary)


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


def last_robust_whole(directory: Path) -> Path | None:
    """The newest whole checkpoint up to the newest that was attacked on held-out images; damaged ones are passed over,
    each named. None where none was attacked, or none of them is whole.
    """
    saved = manifests_in(directory)
    checked = newest_checked(saved)
    return None if checked is None else _newest_whole_of([path for path in saved if step_of(path) <= step_of(checked)])


def remove_after(directory: Path, checkpoint: Path) -> None:
    """Remove the checkpoints of later steps, the newest first: cut off, it leaves those that a training came by."""
    for path in reversed(checkpoints(directory)):
        if step_of(path) > step_of(checkpoint):
            _remove(path)


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
