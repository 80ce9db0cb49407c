"""Identity: each setting, changed alone, changes exactly the artefacts that depend on it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from maep.config.identity import READS, configuration_digest, decisive_fields, decisive_settings
from maep.config.load import Leaves, default_of, leaves, load_settings, setting_value, valid_choices
from maep.config.schema import Settings
from maep.runtime.digests import digest

SECTIONS = {
    "data": {"shards"}, "classifier": {"classifier"}, "attack": {"attack"}, "model": {"pretrain"},
    "objective": {"pretrain", "finetune"}, "pretrain": {"pretrain"}, "finetune": {"finetune"},
    "compute": {"pretrain", "finetune"}, "purify": {"evaluate", "records", "certify"},
    "evaluation": {"evaluate", "records"},
    "purifier": {"pretrain", "evaluate", "records", "certify"}, "robust": {"pretrain", "finetune"},
    "certify": {"certify"},
}  # fmt: skip
# Settings whose artefacts are others than their section's, as a user would expect it, written down by hand.
EXCEPTIONS: dict[str, set[str]] = {
    "evaluation.exact_gradients": set(),  # it refuses, and changes no number
    "run.name": {"report"}, "run.dir": set(), "run.cache": set(),
    "run.seed": {"classifier", "attack", "pretrain", "finetune", "evaluate", "records", "certify", "point"},
    **{f"compute.{name}": {"classifier", "pretrain", "finetune", "point"} for name in ("precision", "tf32")},
    "data.on_error": {"shards"}, "data.max_pixels": {"shards"}, "data.background": {"shards"},
    "purify.batch_tiles": {"evaluate", "point"}, "purify.gradient_memory": set(),
    "robust.classifiers": {"classifier", "pretrain", "finetune", "point"},
    "robust.teacher": {"classifier", "pretrain", "finetune", "point"},
    "evaluation.baseline": {"report"},
    "evaluation.figure_images": {"evaluate", "report", "point"},
    **{
        f"evaluation.{name}": {"evaluate", "point"}
        for name in ("check_images", "purifiers", "precision", "compile", "draws_at_once")
    },
    # How, not what: speed, patience, places and bookkeeping.
    **{f"data.{name}": set() for name in ("workers", "read_timeout", "read_attempts", "read_backoff", "cache_dir")},
    **{f"data.{name}": set() for name in ("cache_bytes", "cache_block")},
    "classifier.save_every": set(), "classifier.robustbench": set(),
    **{
        f"{training}.{name}": set()
        for training in ("pretrain", "finetune")
        for name in ("log_every", "save_every", "pause_at", "keep_last", "keep_every", "keep_best")
    },
    **{
        f"compute.{name}": set()
        for name in ("device", "threads", "image_memory", "claim_timeout", "zero_stage", "log_samples", "join_timeout",
                     "stall_timeout", "grace", "cudnn_benchmark")
    },
}  # fmt: skip


def identities(settings: Settings) -> dict[str, str]:
    """`{artefact: digest of what decides it}`."""
    return {artefact: digest(decisive_settings(settings, artefact)) for artefact in READS}


def another_value(known: Leaves, key: str) -> Any:
    """A value of a setting other than its default; only its type matters here."""
    item, hint = known[key]
    value, choices = default_of(item), valid_choices(item)
    if choices and not isinstance(value, list):
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "another"]
    if isinstance(value, dict):
        return {"another": 1}
    if isinstance(value, str):
        return value + "x"
    return 3 if "int" in str(hint) else "another"


def changed(settings: Settings, key: str, value: Any) -> Settings:
    """The settings with one key changed, unchecked."""
    section, _, name = key.partition(".")
    part = dataclasses.replace(getattr(settings, section), **{name: value})
    return dataclasses.replace(settings, **{section: part})


def every_key() -> Iterator[str]:
    """Every setting, but for the name of another configuration, which is tested below."""
    yield from (key for key in leaves(Settings) if key not in ("pretrain.source", "finetune.source"))


@pytest.mark.parametrize("key", every_key())
def test_a_setting_changes_what_depends_on_it_and_nothing_else(key: str) -> None:
    """Against the table above, which knows sections and exceptions only."""
    settings = load_settings("digits")
    before = identities(settings)
    value = another_value(leaves(Settings), key)
    if value == setting_value(settings, key):
        value = default_of(leaves(Settings)[key][0])
    after = identities(changed(settings, key, value))
    expected = EXCEPTIONS.get(key, SECTIONS.get(key.partition(".")[0], set()) | {"point"})
    assert {artefact for artefact in READS if after[artefact] != before[artefact]} == expected


def test_another_configurations_content_counts(tmp_path: Any) -> None:
    """pretrain.source stands with what the configuration says, not with its name alone."""
    path = tmp_path / "other.yaml"
    path.write_text("data: {format: digits, image_size: 32}\n")
    settings = load_settings("digits", [f"pretrain.source={path}"])
    before = identities(settings)
    path.write_text("data: {format: digits, image_size: 32, train_limit: 7}\n")
    after = identities(settings)
    assert {name for name in READS if after[name] != before[name]} == {"pretrain", "point"}


def test_a_place_is_no_part_of_what_is_made() -> None:
    """A path that names an artefact made elsewhere is left out of the names of those that are made."""
    assert "shards" not in decisive_fields(load_settings("digits").data, "shards")
    assert "weights" not in decisive_fields(load_settings("digits").classifier, "classifier")


def test_the_default_kind_changes_no_older_identity() -> None:
    """`purifier.kind` came later: with its default it stands in no identity."""
    settings = load_settings("digits")
    for artefact in READS:
        assert not any(key.startswith("purifier.") for key in decisive_settings(settings, artefact))


def test_a_configuration_keeps_its_digest_wherever_its_files_are() -> None:
    """That of the committed reports' time, with another run directory, cache and block cache; not with another seed."""
    settings = load_settings("digits", ["run.name=tiny"])
    elsewhere = load_settings("digits", ["run.name=tiny", "run.dir=a", "run.cache=b", "data.cache_dir=c"])
    assert configuration_digest(settings) == configuration_digest(elsewhere)
    assert configuration_digest(settings) != configuration_digest(
        load_settings("digits", ["run.name=tiny", "run.seed=1"])
    )
    assert configuration_digest(settings) != configuration_digest(
        load_settings("digits", ["run.name=tiny", "purifier.kind=median"])
    )
