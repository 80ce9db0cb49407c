"""Checkpoints on disk: which one a training against the whole goes back to, and which one it ships."""

from pathlib import Path

import pytest

from maep.storage.manifests import CheckpointManifest, RobustProgress
from maep.storage.sealed import atomic_directory
from maep.training.checkpointing.directory import back_to_checked, checkpoint_path, checkpoints, most_robust_whole


def saved(directory: Path, step: int, score: float | None) -> Path:
    """A sealed checkpoint of one file. score: of its averaged weights on held-out images, None where unchecked."""
    path = checkpoint_path(directory, step)
    progress = RobustProgress(50.0, checked=score is not None, averaged=score)
    with atomic_directory(path, CheckpointManifest(step=step, robust=progress)) as temporary:
        (temporary / "rank-0000-of-0001.safetensors").write_bytes(bytes(100))
    return path


def damage(path: Path) -> None:
    """One byte of its tensors is another."""
    file = path / "rank-0000-of-0001.safetensors"
    file.write_bytes(bytes(99) + b"x")


def test_what_is_shipped_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the best checkpoint a byte has changed: the next best is shipped, which is said; of none, none."""
    paths = {step: saved(tmp_path, step, score) for step, score in {1: 40.0, 2: 60.0, 3: 50.0, 4: None}.items()}
    assert most_robust_whole(tmp_path) == paths[2]
    assert "passed over" not in capsys.readouterr().out
    damage(paths[2])
    assert most_robust_whole(tmp_path) == paths[3]
    assert "checkpoint passed over" in capsys.readouterr().out
    for step in (1, 3):
        damage(paths[step])
    assert most_robust_whole(tmp_path) is None


def test_back_to_what_was_checked(tmp_path: Path) -> None:
    """Later ones are removed; where the checked one is damaged it is the one before; without a checked one, none."""
    paths = {step: saved(tmp_path, step, {2: 60.0}.get(step)) for step in (1, 2, 3, 4)}
    assert back_to_checked(tmp_path) == paths[2]
    assert checkpoints(tmp_path) == [paths[1], paths[2]]
    damage(paths[2])
    assert back_to_checked(tmp_path) == paths[1]
    other = tmp_path / "other"
    other.mkdir()
    saved(other, 3, None)
    assert back_to_checked(other) is None
    assert checkpoints(other) == []
