"""report.json, the contract with whoever reads results.

{"schema": 1, "environment": {…}, "results": [row, …], "honesty": {purifier: {…}}, "purifying": {purifier: {…}},
 "certificates": [row, …] where there are some, "baseline": {…} where one is named}
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from maep.evaluation.audit.findings import Honesty
from maep.evaluation.audit.purification_cost import PurificationCost
from maep.evaluation.reporting.provenance import Environment
from maep.evaluation.reporting.report_certificate import CertificateRow
from maep.evaluation.reporting.report_row import Interval, ReportRow
from maep.storage.documents import Document

REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A classifier without a purifier, adversarially trained, after the strongest attack on it that was run.

    Accuracies in percent of n images, with Wilson intervals; image_set: as a row's.
    """

    classifier: str
    dataset: str
    attack: str
    norm: str
    eps: float
    n: int
    clean_accuracy: float
    clean_ci95: Interval
    robust_accuracy: float
    robust_ci95: Interval
    image_set: str


@dataclass(frozen=True)
class Report(Document):
    """results: rows; honesty: by purifier, how far its rows can be believed; purifying: by purifier, what it costs;
    certificates: rows; baseline: what evaluation.baseline names.
    """

    VERSION_KEY: ClassVar[str] = "schema"

    environment: Environment
    results: tuple[ReportRow, ...]
    honesty: Mapping[str, Honesty]
    purifying: Mapping[str, PurificationCost] = field(default_factory=dict)  # the first reports had none
    certificates: tuple[CertificateRow, ...] = ()
    baseline: Baseline | None = None

    def to_json(self) -> dict[str, Any]:
        """As in report.json, and equal to what is read from it: with lists, as JSON has no tuples."""
        entries = {
            self.VERSION_KEY: self.FORMAT,
            "environment": asdict(self.environment),
            "results": [row.to_json() for row in self.results],
            "honesty": {name: asdict(honesty) for name, honesty in self.honesty.items()},
            "purifying": {name: asdict(cost) for name, cost in self.purifying.items()},
        }
        if self.certificates:
            entries["certificates"] = [row.to_json() for row in self.certificates]
        if self.baseline:
            entries["baseline"] = asdict(self.baseline)
        return {key: _with_lists(value) for key, value in entries.items()}


def _with_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_lists(item) for key, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, list | tuple) else value
