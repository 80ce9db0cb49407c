"""Manifests and indexes of shard sets: versions, kinds, and entries that do not fit."""

import json

import numpy as np
import pytest

from maep.data.shard_manifest import (
    AdversarialManifest,
    CleanManifest,
    PurifiedManifest,
    ShardEntry,
    ShardIndex,
    ShardManifest,
    read_shard_manifest,
)
from maep.runtime.errors import UserError

FILE = {"bytes": 10, "sha256": "0" * 64}
ENTRIES = {
    "classes": ["a", "b"], "count": 3, "encoding": "png", "identity": "1" * 64,
    "shards": [{"name": "shard-00000.tar", "count": 3, "first": 0}],
    "files": {"shard-00000.tar": FILE, "shard-00000.index.json": FILE},
}  # fmt: skip
ATTACKED = {
    "clean_identity": "2" * 64, "classifier_identity": "3" * 64, "attack": {"method": "pgd"}, "attack_identity": "4",
    "seed": 0, "batch_size": 5, "success_rate": 50.0, "clean_accuracy": 100.0, "adversarial_accuracy": 50,
    "eps_used": 0.1,
}  # fmt: skip
INDEX = {
    "shard": "shard-00000.tar", "first": 0, "count": 2, "encoding": "png", "content": "5" * 64, "offsets": [0, 9],
    "bytes": [7, 8], "crc32": [1, 2**32 - 1], "labels": [0, 1],
}  # fmt: skip


def read(**entries: object) -> ShardManifest:
    """A manifest of these entries beside those of every shard set."""
    return read_shard_manifest(json.dumps({**ENTRIES, **entries}).encode(), "set/manifest.json")


def test_each_kind_is_read_as_its_own() -> None:
    """With and without a format; an unknown kind is a shard set like any other."""
    clean = read(kind="clean", skipped=[{"name": "x", "reason": "corrupt"}])
    assert isinstance(clean, CleanManifest)
    assert (clean.skipped[0].name, clean.shards[0].index_name) == ("x", "shard-00000.index.json")
    assert isinstance(read(kind="adversarial", format=1, **ATTACKED), AdversarialManifest)
    assert type(read(kind="other")) is ShardManifest


def test_an_old_purified_set_says_where_it_is_from() -> None:
    """Format 0 had the entries of its source among its own; they are found where they are now."""
    manifest = read(kind="purified", purified_from="6", **ATTACKED)
    assert isinstance(manifest, PurifiedManifest)
    assert (manifest.clean_identity, manifest.source["seed"]) == ("2" * 64, 0)
    assert PurifiedManifest.from_json(manifest.to_json(), "again") == manifest


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"format": 2}, "format 2; this version of maep reads up to 1"),
        ({"count": -1}, "count=-1: must be at least 0"),
        ({"shards": [{"name": "a.tar", "count": 3, "first": 0}]}, r"does not list a\.tar"),
        ({"kind": "adversarial"}, "lacks the entry 'clean_identity'"),
        ({"kind": "adversarial", **ATTACKED, "success_rate": 101}, "success_rate=101.0: must be at most 100"),
    ],
)
def test_what_does_not_fit_is_named(entries: dict[str, object], named: str) -> None:
    """One line with the file and the entry."""
    with pytest.raises(UserError, match=rf"set/manifest\.json.*{named}"):
        read(**entries)


def test_an_index_is_read_as_it_was_written() -> None:
    """Without a format too; its lists are int64 arrays."""
    for entries in (INDEX, {"format": 1, **INDEX}):
        index = ShardIndex.from_json(entries, "index.json")
        assert index.to_json() == {"format": 1, **INDEX}
        assert index.crc32.dtype == np.int64


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"format": 3}, "format 3"),
        ({"labels": [0]}, "labels: expected a list of as many whole numbers"),
        ({"labels": [0, 1.5]}, "labels: expected"),
        ({"labels": [0, [1, 2]]}, "labels: expected"),
        ({"offsets": None}, "offsets: expected"),
        ({"count": -2}, "expected a list"),
    ],
)
def test_an_index_that_does_not_fit_is_named(entries: dict[str, object], named: str) -> None:
    """One line with the file and the entry."""
    with pytest.raises(UserError, match=rf"index\.json.*{named}"):
        ShardIndex.from_json({**INDEX, **entries}, "index.json")


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({}, ""),
        ({"first": 1}, "lists 2 samples from 1 on; its manifest says 2 from 0 on"),
        ({"offsets": [0, 20]}, "sample 1: 8 bytes at 20 lie outside of shard-00000.tar, which has 20"),
        ({"offsets": [0, 13]}, "sample 1: 8 bytes at 13 lie outside"),
        ({"offsets": [-1, 9]}, "sample 0: 7 bytes at -1 lie outside"),
        ({"bytes": [7, -8]}, "sample 1: -8 bytes at 9 lie outside"),
        ({"bytes": [2**62, 8], "offsets": [2**62, 9]}, "sample 0: .* lie outside"),
        ({"labels": [0, 2]}, "sample 1: label 2; there are 2 classes"),
        ({"labels": [-1, 1]}, "sample 0: label -1; there are 2 classes"),
    ],
)
def test_an_index_fits_its_shard(entries: dict[str, object], named: str) -> None:
    """Offsets, sizes and labels of a stranger's index stay within the tar and the classes."""
    index = ShardIndex.from_json({**INDEX, **entries}, "index.json")
    shard = ShardEntry("shard-00000.tar", 2, 0)
    if not named:
        index.check(shard, 20, 2, "index.json")
        return
    with pytest.raises(UserError, match=rf"index\.json: {named}"):
        index.check(shard, 20, 2, "index.json")


def test_an_index_without_checksums_is_refused() -> None:
    """It says what to do."""
    old = {name: value for name, value in INDEX.items() if name != "crc32"}
    with pytest.raises(UserError, match=r"index\.json: has no checksums of its samples.*make the shards again"):
        ShardIndex.from_json(old, "index.json")
