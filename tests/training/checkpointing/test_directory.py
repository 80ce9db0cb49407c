"""Checkpoints on disk: which one a training against the whole goes back to, and which one it ships."""

import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from maep.storage.manifests import CheckpointManifest, RobustProgress
from maep.storage.sealed import MANIFEST, atomic_directory
from maep.training.checkpointing.directory import (
    Retention,
    checkpoint_path,
    checkpoints,
    last_robust_whole,
    most_robust_whole,
    prune,
    remove_after,
)


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


def test_back_to_what_was_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the newest checked one; where that is damaged, which is said, the one before, if that is whole; without a
    checked one, none. Nothing is removed.
    """
    paths = {step: saved(tmp_path, step, {2: 60.0}.get(step)) for step in (1, 2, 3, 4)}
    assert last_robust_whole(tmp_path) == paths[2]
    assert "passed over" not in capsys.readouterr().out
    damage(paths[2])
    assert last_robust_whole(tmp_path) == paths[1]
    assert "checkpoint passed over" in capsys.readouterr().out
    damage(paths[1])
    assert last_robust_whole(tmp_path) is None
    assert checkpoints(tmp_path) == list(paths.values())
    assert last_robust_whole(saved(tmp_path / "other", 3, None).parent) is None


def test_later_ones_are_removed_and_cut_off_at_any_file_each_is_whole_or_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest first. What is left of one is no checkpoint, stands in no later one's way, and goes when pruned."""
    paths = {step: saved(tmp_path, step, 60.0) for step in (1, 2, 3, 4)}

    def cut_off(path: Path) -> NoReturn:
        (path / MANIFEST).unlink()
        raise InterruptedError

    for left in (3, 2):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", cut_off)
            with pytest.raises(InterruptedError):
                remove_after(tmp_path, paths[1])
        assert [path.name for path in sorted(tmp_path.glob("step-*"))] == [
            paths[step].name for step in range(1, left + 1)
        ]
    saved(tmp_path, 4, 60.0)
    remove_after(tmp_path, paths[1])
    assert checkpoints(tmp_path) == [paths[1]]
    assert [path.name for path in tmp_path.iterdir() if path != paths[1]] == [".tmp-step-000003"]
    prune(tmp_path, Retention(2))
    assert list(tmp_path.iterdir()) == [paths[1]]
