"""A row of a report with what a test asks for."""

from dataclasses import MISSING, fields
from typing import Any

from maep.evaluation.reporting.report_row import ReportRow

PLAIN: dict[str, Any] = {"str": "x", "int": 20, "float": 50.0, "Interval": (40.0, 60.0)}


def report_row(**entries: Any) -> ReportRow:
    """A row whose other entries are plain values of their types."""
    needed = {item.name: str(item.type) for item in fields(ReportRow) if item.default is MISSING}
    others = {name: PLAIN.get(getattr(hint, "__name__", hint)) for name, hint in needed.items()}
    values = {item.name: others[item.name] for item in fields(ReportRow) if item.name in others}
    return ReportRow(**{**values, "norm": "Linf", "per_class": (), **entries})
