"""How a setting is declared: with its default, unit, range, one line of help, and what it decides."""

from collections.abc import Iterable
from dataclasses import field
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    choices: Iterable[Any] | str = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    affects_result: bool | tuple[str, ...] = True,
    stands_in: bool = False,
    added: bool | tuple[str, ...] = False,
) -> Any:
    """A dataclass field with its documentation, its range and what it decides.

    choices: the valid values, or `module:NAME` of the registry that has them. low <= value <= high, value > above.
    affects_result: whether artefacts depend on it: all that read its section, none, or those named
    (`maep.config.identity.READS`). stands_in: it names an artefact made elsewhere, whose content counts, not its path.
    added: it came later; identities leave it out while it has its default, so that what was made before stays valid
    (of all artefacts, or of those named).
    """
    metadata = {
        "help": help, "unit": unit, "choices": choices if isinstance(choices, str) else tuple(choices), "low": low,
        "high": high, "above": above, "affects_result": affects_result, "stands_in": stands_in, "added": added,
    }  # fmt: skip
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
