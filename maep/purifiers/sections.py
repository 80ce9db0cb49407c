"""A kind's section of the settings: what of it decides the network, and what says how a trained one is used."""

from dataclasses import fields
from typing import Any

from maep.config.identity import decides
from maep.config.load import default_of

USED = ("evaluate", "records", "certify", "point")  # what depends on a setting that says how a trained network is used


def network_entries(section: Any) -> dict[str, Any]:
    """`{setting: value}` of a network's section, without those that say how it is used."""
    return {item.name: getattr(section, item.name) for item in fields(section) if decides(item, "pretrain")}


def saved_entries(section: Any) -> dict[str, Any]:
    """As `network_entries`, without settings that came later and have their default: a checkpoint of before fits."""
    later = {item.name: default_of(item) for item in fields(section) if item.metadata.get("added")}
    entries = network_entries(section).items()
    return {name: value for name, value in entries if name not in later or value != later[name]}


def use_entries(section: Any) -> dict[str, Any]:
    """`{setting: value}` of a network's section, of those that its training does not depend on (`USED`)."""
    return {item.name: getattr(section, item.name) for item in fields(section) if not decides(item, "pretrain")}
