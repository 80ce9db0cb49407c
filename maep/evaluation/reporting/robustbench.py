"""A result in the format of RobustBench's leaderboard: the JSON of its folder model_info/DATASET/NORM.

The fields are those that its robustbench/leaderboard/template.py asks for and its newer entries have. What only the
authors know (link, name of the paper, authors, venue, what they reported, additional data) is left null for them.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from maep.attacks.threat_models import Adaptive
from maep.config.attack_names import AUTOATTACK
from maep.evaluation.audit.findings import ALARM
from maep.evaluation.reporting.report_document import Report
from maep.evaluation.reporting.report_row import ReportRow
from maep.evaluation.scoring.defense import UNDEFENDED
from maep.evaluation.scoring.tasks import eps_text
from maep.purifiers.registry import KINDS
from maep.runtime.console import say
from maep.storage.atomic import write_json

FOR_THE_AUTHORS = ("link", "name", "authors", "additional_data", "venue", "reported")


def model_info(report: Report, purifier: str = "", norm: str = "", eps: float = 0.0) -> Mapping[str, object] | None:
    """RobustBench's entry of a report: AutoAttack on all of the model at its first budget; None if that was not run.

    purifier: its name in the report; norm, eps: the budget; default: the first.
    """
    rows = [row for row in report.results if row.threat_model == Adaptive.name and row.attack == AUTOATTACK]
    rows = [row for row in rows if purifier in ("", row.purifier) and norm in ("", row.norm)]
    rows = [row for row in rows if not eps or math.isclose(row.eps, eps, rel_tol=1e-6)]
    if not rows:
        return None
    row = rows[0]
    honesty = report.honesty[row.purifier]
    worst = next(case for case in honesty.worst_case if case.eps == row.eps)
    low, high = row.robust_ci95
    purifier = "" if row.purifier == UNDEFENDED else f" behind {_purifier_of(row)}"
    return {
        **dict.fromkeys(FOR_THE_AUTHORS),
        "number_forward_passes": 1,
        "dataset": row.dataset,
        "architecture": row.classifier + purifier,
        "eps": eps_text(row.eps),
        "clean_acc": f"{row.clean_accuracy:.2f}",
        "autoattack_acc": f"{row.robust_accuracy:.2f}",
        "external": f"{worst.robust_accuracy:.2f}",
        "footnote": f"{row.norm}, first {row.n} images, 95 % interval {low:.2f} to {high:.2f}; external: "
        "stood against every attack of the report",
        "unreliable": any(finding.level == ALARM for finding in honesty.findings),
    }


def _purifier_of(row: ReportRow) -> str:
    """What kind it is: a report knows a trained one by its objective, which is no architecture."""
    return row.kind if row.kind in KINDS else row.purifier


def write_model_info(report: Report, path: Path) -> None:
    """Commit the entry to `path`, or say why there is none."""
    info = model_info(report)
    if info is None:
        say(f"robustbench: no entry, since AutoAttack ({AUTOATTACK}) was not run by an adaptive attacker")
        return
    write_json(path, info)
    say(f"robustbench: {path} (its authors' fields are to be filled in)")
