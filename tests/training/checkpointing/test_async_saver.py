"""Saves beside the training: consistent although the weights go on changing, whole or absent, kept as asked."""

import threading
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maep.runtime.errors import UserError
from maep.storage.atomic import read_json
from maep.storage.manifests import CheckpointManifest
from maep.storage.sealed import problem_with
from maep.storage.tensor_files import HostBuffer
from maep.training.checkpointing.async_saver import Saver
from maep.training.checkpointing.directory import (
    Retention,
    checkpoint_path,
    checkpoints,
    load_checkpoint,
    newest_whole,
    step_of,
)
from maep.training.checkpointing.training_state import TrainingState
from maep.training.ema import Average

LAST_TWO = Retention(last=2)


class Small:
    """A model of two layers in training, with all that a checkpoint holds."""

    def __init__(self, width: int = 64) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 8))
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.state = TrainingState(self.parameters, self.optimizer, Average(self.parameters, 0.9))

    def step(self, number: int) -> None:
        torch.manual_seed(number)
        self.optimizer.zero_grad()
        self.model(torch.randn(4, 8)).square().mean().backward()
        self.optimizer.step()
        assert self.state.average
        self.state.average.update(number)

    def saver(self, directory: Path, keep: Retention = LAST_TWO) -> Saver:
        return Saver(directory, self.state, keep, timeout=10)


def test_resumed_from_a_save_goes_on_exactly(tmp_path: Path) -> None:
    """Saved while training goes on, then restored into a fresh model: the following steps give the same weights."""
    first = Small()
    saver = first.saver(tmp_path)
    for number in range(6):
        saver.before_update()
        first.step(number)
        if number == 2:
            saver.save(CheckpointManifest(step=3))
    saver.finish()
    again = Small()
    assert load_checkpoint(checkpoint_path(tmp_path, 3), again.state, CheckpointManifest(step=0)).step == 3
    for number in range(3, 6):
        again.step(number)
    for name, parameter in first.parameters.items():
        assert torch.equal(parameter, again.parameters[name])
        assert first.state.average is not None
        assert again.state.average is not None
        assert torch.equal(first.state.average.parts[name], again.state.average.parts[name])


def test_what_trains_on_the_cpu_leaves_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA is at hand and not in use, nothing is asked of it: no stream, no page-locked memory, no waiting."""
    assert not torch.cuda.is_initialized()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    training = Small()
    saver = training.saver(tmp_path)
    training.step(0)
    saver.save(CheckpointManifest(step=1))
    saver.finish()
    assert checkpoint_path(tmp_path, 1).is_dir()


def held_back(monkeypatch: pytest.MonkeyPatch, method: str) -> threading.Event:
    """Let a method of the buffer go on only when the event is set."""
    go, original = threading.Event(), getattr(HostBuffer, method)

    def waiting(self: HostBuffer, *arguments: Any) -> Any:
        assert go.wait(30)
        return original(self, *arguments)

    monkeypatch.setattr(HostBuffer, method, waiting)
    return go


def test_ranks_share_out_alike_whatever_order_their_state_is_in() -> None:
    """After a resume the optimizer's entries lie in another order on every rank; no tensor is lost or kept twice."""
    training = Small()
    training.step(0)
    everything = {piece.name for piece in training.state.pieces(0, 1)}
    first = [piece.name for piece in training.state.pieces(0, 2)]
    for order in permutations(("step", "exp_avg", "exp_avg_sq")):
        for parameter, state in list(training.optimizer.state.items()):
            training.optimizer.state[parameter] = {key: state[key] for key in order}
        second = [piece.name for piece in training.state.pieces(1, 2)]
        assert sorted(first + second) == sorted(everything)


def test_update_waits_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer's turn comes only once the state is in memory, and the wait is counted as blocked."""
    small = Small()
    small.step(0)
    saver, go = small.saver(tmp_path), held_back(monkeypatch, "fill")
    saver.save(CheckpointManifest(step=1))
    threading.Timer(0.2, go.set).start()
    saver.before_update()
    assert go.is_set()
    saver.finish()
    assert saver.metrics()["save_blocked_seconds"] > 0.1
    assert saver.metrics() == {}


def test_training_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the file is written the update may go on; a bounded wait says that it is not done; it then ends whole."""
    small = Small()
    small.step(0)
    saver, go = small.saver(tmp_path), held_back(monkeypatch, "write")
    assert saver.save(CheckpointManifest(step=1))
    saver.before_update()
    small.step(1)
    assert not saver.finish(within=0.01)
    assert not saver.save(CheckpointManifest(step=2), within=0.01)
    assert checkpoints(tmp_path) == []
    go.set()
    assert saver.finish()
    assert newest_whole(tmp_path) == saver.good == checkpoint_path(tmp_path, 1)


def test_full_disk_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails is told as one line that names the checkpoint; those before stay, and nothing half-written."""
    small = Small()
    small.step(0)
    saver = small.saver(tmp_path)
    for step in (1, 2):
        saver.save(CheckpointManifest(step=step))
    saver.finish()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HostBuffer, "write", full)
    saver.save(CheckpointManifest(step=3))
    with pytest.raises(UserError, match=r"step-000003: cannot be written: No space left on device; earlier"):
        saver.finish()
    assert [path.name for path in tmp_path.iterdir()] == [path.name for path in checkpoints(tmp_path)]
    assert [step_of(path) for path in checkpoints(tmp_path)] == [1, 2]
    assert not any(map(problem_with, checkpoints(tmp_path)))


def test_error_in_the_background_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug while saving does not vanish with its thread."""
    small = Small()
    saver = small.saver(tmp_path)
    monkeypatch.setattr(HostBuffer, "fill", lambda *_: 1 / 0)
    saver.save(CheckpointManifest(step=1))
    saver.before_update()
    with pytest.raises(ZeroDivisionError):
        saver.finish()


def test_retention(tmp_path: Path) -> None:
    """The last two, every fourth step, and the one of the lowest loss stay; nothing else does."""
    small = Small()
    small.step(0)
    saver = small.saver(tmp_path, Retention(last=2, every=4, best=1))
    for step, loss in enumerate([5, 4, 1, 3, 2, 6, 7, 8, 9, 9], start=1):
        saver.save(CheckpointManifest(step=step, loss=loss))
    saver.finish()
    assert [step_of(path) for path in checkpoints(tmp_path)] == [3, 4, 8, 9, 10]
    assert read_json(checkpoint_path(tmp_path, 3) / "manifest.json")["loss"] == 1


def test_two_whole_ones_while_the_third_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old checkpoints are removed only after the new one is committed."""
    small = Small()
    small.step(0)
    saver = small.saver(tmp_path)
    for step in (1, 2):
        saver.save(CheckpointManifest(step=step))
    saver.finish()
    go = held_back(monkeypatch, "write")
    saver.save(CheckpointManifest(step=3))
    saver.before_update()
    assert [step_of(path) for path in checkpoints(tmp_path)] == [1, 2]
    go.set()
    saver.finish()
    assert [step_of(path) for path in checkpoints(tmp_path)] == [2, 3]


def of_model(width: int) -> CheckpointManifest:
    """The manifest of a model of some encoder width."""
    return CheckpointManifest(step=1, model={"encoder_width": width, "depth": 2})


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    """Another setting of the model is named, and so is another shape."""
    small = Small()
    small.step(0)
    saver = small.saver(tmp_path)
    saver.save(of_model(64))
    saver.finish()
    path = checkpoint_path(tmp_path, 1)
    with pytest.raises(UserError, match=r"of another model: it has model\.encoder_width=64, this run 32"):
        load_checkpoint(path, small.state, of_model(32))
    with pytest.raises(UserError, match=r"weights do not fit: 0\.weight \(is \(64, 8\), expected \(32, 8\)\)"):
        load_checkpoint(path, Small(32).state, of_model(64))
