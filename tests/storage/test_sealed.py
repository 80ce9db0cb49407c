"""Sealed directories: every damage is named, and a manifest of a newer version is no damage."""

import json
from pathlib import Path

import pytest

from maep import __version__
from maep.runtime.errors import UserError
from maep.storage.manifests import CheckpointManifest, Manifest, StampedManifest
from maep.storage.sealed import MANIFEST, atomic_directory, problem_with
from maep.training.checkpointing.directory import newest_whole


def seal(directory: Path, manifest: Manifest) -> Path:
    """A sealed directory of one file."""
    with atomic_directory(directory, manifest) as temporary:
        (temporary / "data").write_bytes(b"0123456789")
    return directory


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_in_a_sealed_directory_is_named(tmp_path: Path, damage: str) -> None:
    """A flipped byte, a truncation and a missing file are each found and named."""
    directory = tmp_path / "sealed"
    seal(directory, Manifest(kind="test"))
    assert problem_with(directory) is None
    path = directory / "data"
    if damage == "flip":
        path.write_bytes(b"0123456780")
    elif damage == "truncate":
        path.write_bytes(b"01234")
    else:
        path.unlink()
    problem = problem_with(directory)
    assert problem
    assert str(path) in problem


def entries_of(directory: Path) -> dict[str, object]:
    """The manifest as it lies on the disk."""
    return json.loads((directory / MANIFEST).read_text())


def test_manifests_have_a_format_and_the_version_that_wrote_them(tmp_path: Path) -> None:
    """Read back as they were written; sealed again, the version is this one's."""
    directory = seal(tmp_path / "step-000003", CheckpointManifest(step=3, maep="0.0.1"))
    assert {"format": 1, "kind": "checkpoint", "maep": __version__, "step": 3}.items() <= entries_of(directory).items()
    manifest = CheckpointManifest.read(directory / MANIFEST)
    assert (manifest.step, manifest.files["data"].bytes) == (3, 10)
    assert "maep" not in entries_of(seal(tmp_path / "plain", Manifest()))


def test_a_manifest_without_format_is_read(tmp_path: Path) -> None:
    """As they were before they had a version: with fewer entries, and whole."""
    directory = seal(tmp_path / "step-000003", CheckpointManifest(step=3))
    old = {name: value for name, value in entries_of(directory).items() if name in ("kind", "step", "files")}
    (directory / MANIFEST).write_text(json.dumps(old))
    assert problem_with(directory) is None
    manifest = CheckpointManifest.read(directory / MANIFEST)
    assert (manifest.step, manifest.method, manifest.maep) == (3, "full", "")


def test_a_newer_checkpoint_is_refused_not_passed_over(tmp_path: Path) -> None:
    """Going on from an older one would silently lose steps."""
    seal(tmp_path / "step-000001", CheckpointManifest(step=1))
    newer = seal(tmp_path / "step-000002", CheckpointManifest(step=2))
    (newer / MANIFEST).write_text(json.dumps({**entries_of(newer), "format": 99}))
    with pytest.raises(UserError, match=r"step-000002/manifest\.json: format 99; this version of maep reads up to 1"):
        newest_whole(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value", "named"),
    [("step", -1, "step=-1: must be at least 0"), ("world", "2", 'world="2"'), ("files", {"data": {}}, "files.data")],
)
def test_an_entry_that_does_not_fit_is_named(tmp_path: Path, entry: str, value: object, named: str) -> None:
    """With the file."""
    directory = seal(tmp_path / "step-000001", CheckpointManifest(step=1))
    (directory / MANIFEST).write_text(json.dumps({**entries_of(directory), entry: value}))
    with pytest.raises(UserError, match=rf"step-000001/manifest\.json: .*{named}"):
        CheckpointManifest.read(directory / MANIFEST)


def test_a_stamp_is_empty_where_there_was_none() -> None:
    """Not this version's: it did not write it."""
    assert StampedManifest.from_json({"files": {}}, "manifest.json").maep == ""
