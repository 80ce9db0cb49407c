"""What decides an artefact: the one place that says which settings a result depends on.

An artefact reads sections of the settings (`READS`); whether a setting in them matters stands at the setting itself
(`maep.config.setting`: affects_result, stands_in, added). Two artefacts whose decisive settings and inputs are
equal are the same artefact.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, asdict, fields
from functools import cache
from typing import Any

from maep.config.load import default_of, leaves, leaves_of, setting_value
from maep.config.pair_source import TRAININGS, source_facts
from maep.config.schema import Settings
from maep.runtime.digests import digest

PAIRS = ("data", "classifier", "attack")  # sections that make the pairs of a training
# Sections and keys that each artefact reads; those of a stage's inputs are left to the inputs' own identities.
# `records` is a chunk's record within `evaluate`, `point` a finished run within a sweep.
READS = {
    "shards": ("data",),
    "classifier": (
        "classifier",
        "robust.classifiers",
        "robust.teacher",
        "run.seed",
        "compute.precision",
        "compute.tf32",
    ),
    "attack": ("attack", "run.seed"),
    "pretrain": ("purifier", "model", "objective", "pretrain", "robust", "compute", "run.seed"),
    "finetune": ("finetune", "objective", "robust", "compute", "run.seed"),
    "evaluate": ("purifier", "evaluation", "purify", "run.seed"),
    "records": ("purifier", "evaluation", "purify", "run.seed"),
    "certify": ("purifier", "certify", "purify", "run.seed"),
    "report": ("run.name", "evaluation.figure_images", "evaluation.baseline"),
    "point": tuple(item.name for item in fields(Settings)),
}


def decides(item: Field[Any], artefact: str) -> bool:
    """Whether an artefact that reads a setting depends on it."""
    affects = item.metadata.get("affects_result", True)
    return affects if isinstance(affects, bool) else artefact in affects


def decisive_settings(settings: Settings, artefact: str, reads: Iterable[str] = ()) -> dict[str, Any]:
    """`{key: value}` of the settings that decide an artefact, one of READS.

    reads: sections and keys, where they are others than the artefact's own. The name of another configuration
    (pretrain.source) stands with the digest of what it says.
    """
    values = dict(_decisive(settings, artefact, tuple(reads) or READS[artefact]))
    asked = [name for name in TRAININGS if f"{name}.source" in values]
    for training, source in source_facts(settings, asked).items():
        values[f"{training}.source"] += f" {digest(decisive_settings(source, 'point', PAIRS))[:8]}"
    return values


def decisive_fields(section: Any, artefact: str) -> dict[str, Any]:
    """`{name: value}` of the settings of one section that decide an artefact that is made, not given.

    section: such as `settings.data`.
    """
    values = {}
    for item in fields(section):
        value = getattr(section, item.name)
        omitted = item.metadata.get("stands_in") or (_is_added(item, artefact) and value == default_of(item))
        if decides(item, artefact) and not omitted:
            values[item.name] = value
    return values


def configuration_digest(settings: Settings) -> str:
    """64 hex digits of the whole configuration, how it is computed included, wherever its files are."""
    values = asdict(settings)
    for key, (item, _) in leaves_of(settings).items():
        section, _, name = key.partition(".")
        is_place = item.metadata.get("unit") == "path" and item.metadata.get("affects_result") is False
        if is_place or (_is_added(item, "configuration") and values[section][name] == default_of(item)):
            del values[section][name]
    return digest({section: entries for section, entries in values.items() if entries})


def _decisive(settings: Settings, artefact: str, reads: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, item in _deciding(type(settings), settings.purifier.kind, artefact, reads):
        value = setting_value(settings, key)
        if not (_is_added(item, artefact) and value == default_of(item)):
            yield key, value


def _deciding_settings(cls: type, kind: str, artefact: str, reads: tuple[str, ...]) -> list[tuple[str, Field[Any]]]:
    """The settings that may decide an artefact, whatever their values."""
    return [
        (key, item) for key, (item, _) in leaves(cls).items() if _reads(kind, key, reads) and decides(item, artefact)
    ]


# Asked ten times for each point of a sweep.
_deciding: Callable[[type, str, str, tuple[str, ...]], list[tuple[str, Field[Any]]]] = cache(_deciding_settings)


def _reads(kind: str, key: str, reads: tuple[str, ...]) -> bool:
    """The section of the purifier's kind is read where its kind is."""
    section = key.partition(".")[0]
    return key in reads or section in reads or (section == kind and "purifier" in reads)


def _is_added(item: Field[Any], artefact: str) -> bool:
    added = item.metadata.get("added", False)
    return added if isinstance(added, bool) else artefact in added
