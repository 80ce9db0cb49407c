"""Which row of a report a reading of a sweep means."""

from pathlib import Path
from typing import Any

from maep.config.load import FRACTION
from maep.storage.atomic import read_json


def budget(value: Any) -> float:
    """A budget as written, such as 8/255."""
    match = FRACTION.fullmatch(str(value))
    return float(match[1]) / float(match[2]) if match else float(value)


def row_of(report: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The first row of a report.json with the attack, budget, threat model and kind of purifier that are wanted."""
    return next((row for row in read_json(report)["results"] if _fits(row, wanted)), None)


def _fits(row: dict[str, Any], wanted: dict[str, Any]) -> bool:
    finetuned = "+" in row["purifier"]
    return (
        finetuned == (wanted["purifier"] == "finetuned")
        and row["attack"] == wanted["attack"]
        and row["threat_model"] == wanted["threat_model"]
        and abs(row["eps"] - budget(wanted["eps"])) < 1e-6
    )
