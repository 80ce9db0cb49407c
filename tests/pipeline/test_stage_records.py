"""Records of stages: what differs is a value that knows its setting, and older records stay valid."""

from pathlib import Path

import pytest

from maep.config.identity import decisive_settings
from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.pipeline.stage_records import Reason, StageRecord, Why, changes, in_words, read_stage_record, record_path
from maep.runtime.errors import UserError
from maep.storage.atomic import write_json


def record_of(settings: Settings, artefact: str, inputs: dict[str, str] | None = None) -> StageRecord:
    """As the stage would write it."""
    return StageRecord(decisive_settings(settings, artefact), inputs or {"shards": "a"}, True, "b", 1.0)


def test_a_changed_setting_is_named_with_both_values() -> None:
    """And how something is computed is no change."""
    settings = load_settings("digits", ["pretrain.lr=0.001"])
    other = load_settings("digits", ["pretrain.lr=0.002", "pretrain.log_every=3", "compute.threads=1"])
    reasons = changes(record_of(settings, "pretrain"), record_of(other, "pretrain"), other, "pretrain")
    assert reasons == [Reason(Why.SETTING_CHANGED, "pretrain.lr", 0.001, 0.002)]
    assert in_words(reasons, 1) == "pretrain.lr changed from 0.001 to 0.002"


def test_another_input_is_named() -> None:
    """By the stage that made it."""
    settings = load_settings("digits")
    now = record_of(settings, "pretrain", {"shards": "other"})
    reasons = changes(record_of(settings, "pretrain"), now, settings, "pretrain")
    assert reasons == [Reason(Why.INPUT_CHANGED, "shards")]
    assert in_words(reasons, 1) == "shards made something else"


def test_a_setting_that_came_later_counts_with_its_default() -> None:
    """A record from before it is valid while it has its default, and not when it is set."""
    settings = load_settings("digits")
    before = record_of(settings, "evaluate")
    del before.settings["purify.shifts"]
    assert changes(before, record_of(settings, "evaluate"), settings, "evaluate") == []
    other = load_settings("digits", ["purify.shifts=4"])
    reasons = changes(before, record_of(other, "evaluate"), other, "evaluate")
    assert reasons == [Reason(Why.SETTING_CHANGED, "purify.shifts", 1, 4)]


def test_a_kind_put_back_is_a_change() -> None:
    """The default kind stands in no record, yet a record of another kind is not its own."""
    median, maep = load_settings("digits", ["purifier.kind=median"]), load_settings("digits")
    reasons = changes(record_of(median, "evaluate"), record_of(maep, "evaluate"), maep, "evaluate")
    assert Reason(Why.SETTING_CHANGED, "purifier.kind", "median", "maep") in reasons
    assert Reason(Why.SETTING_GONE, "median.window") in reasons


def test_what_no_longer_decides_is_no_change() -> None:
    """Older records hold settings that say how something was computed, too."""
    settings = load_settings("digits")
    before = record_of(settings, "shards")
    before.settings["data.workers"] = 77
    assert changes(before, record_of(settings, "shards"), settings, "shards") == []


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"format": 99}, "format 99"),
        ({"settings": []}, "settings=.*expected an object"),
        ({"finished": "yes"}, 'finished="yes": expected true or false'),
        ({"seconds": -1}, "seconds=-1.0: must be at least 0"),
        ([], "expected a JSON object"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, entries: object, named: str) -> None:
    """File and entry, in one line."""
    path = record_path(tmp_path, "attack")
    write_json(path, entries)
    with pytest.raises(UserError, match=rf"attack\.json.*{named}"):
        read_stage_record(tmp_path, "attack")
