"""Which row of a point's report a table reads; a sweep's file names them under `readings`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from maep.config.attack_names import check_attack
from maep.config.implementations import THREAT_MODELS
from maep.config.values import FRACTION
from maep.runtime.errors import fail, nearest
from maep.storage.atomic import read_json
from maep.storage.documents import read_fields

# Budgets are written as fractions of 255, whose distance is 4e-3: this tolerates rounding and nothing else.
EPS_TOLERANCE = 1e-6
# As a threat model: not one row, but what stood against every attack of every attacker, image by image.
WORST_CASE = "worst-case"


@dataclass(frozen=True)
class RowSelector:
    """What a row must have. purifier: before or after its finetuning, or as it was left (`final`: after it where there
    was one). eps: a budget as written, 8/255 or a number. threat_model: one, or `worst-case`, for which the attack does
    not matter.
    """

    purifier: Literal["pretrained", "finetuned", "final"] = "pretrained"
    attack: str = "autoattack-standard"
    eps: str | int | float = "8/255"
    threat_model: str = "oblivious"

    @property
    def budget(self) -> float:
        """eps as a number, in units of the [0, 1] pixel range. Raises ValueError if it is none."""
        match = FRACTION.fullmatch(str(self.eps))
        return float(match[1]) / float(match[2]) if match else float(self.eps)

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of a report.json is one of those meant. A finetuned purifier is called OBJECTIVE+METHOD."""
        return (
            self.means(row["purifier"], row["eps"])
            and row["attack"] == self.attack
            and row["threat_model"] == self.threat_model
        )

    def means(self, purifier: str, eps: float) -> bool:
        """Whether what is of this purifier, as reports call it, at this budget may be meant."""
        return ("+" in purifier) == (self.purifier == "finetuned") and self.is_at(eps)

    def is_at(self, eps: float) -> bool:
        """Whether a budget is the one that is meant."""
        return abs(eps - self.budget) < EPS_TOLERANCE


def read_row_selector(entries: Mapping[str, Any], source: str) -> RowSelector:
    """As a sweep's file has it.

    Raises UserError, naming source and key, for a wrong type, a budget that is none, and an attack or a threat model
    that there is not.
    """
    selector = read_fields(RowSelector, entries, source)
    try:
        positive = selector.budget >= 0
    except (ValueError, ZeroDivisionError):
        positive = False
    if not positive:
        fail(f"{source}: eps={selector.eps}: expected a budget, such as 8/255")
    check_attack(selector.attack, f"{source}: attack")
    names, name = (*THREAT_MODELS, WORST_CASE), selector.threat_model
    if name not in names:
        fail(f"{source}: threat_model={name}: no such{nearest(name, names)}; choose one of {', '.join(names)}")
    return selector


def row_of(report: Path, selector: RowSelector) -> Mapping[str, Any] | None:
    """The first row of a report.json that the selector means; None if it has none."""
    content = read_json(report)
    if selector.purifier == "final":
        is_finetuned = any("+" in row["purifier"] for row in content["results"])
        selector = replace(selector, purifier="finetuned" if is_finetuned else "pretrained")
    if selector.threat_model == WORST_CASE:
        return _worst_case(content, selector)
    return next((row for row in content["results"] if selector.matches(row)), None)


def _worst_case(content: Mapping[str, Any], selector: RowSelector) -> Mapping[str, Any] | None:
    """As a row: clean accuracy where the fewest images were attacked, which are those that all attackers had."""
    from maep.evaluation.scoring.metrics import wilson_interval

    rows = [row for row in content["results"] if selector.means(row["purifier"], row["eps"])]
    if not rows:
        return None
    fewest = min(rows, key=lambda row: row["n"])
    cases = content["honesty"][fewest["purifier"]]["worst_case"]
    case = next(case for case in cases if selector.means(fewest["purifier"], case["eps"]))
    low, high = wilson_interval(round(case["robust_accuracy"] * case["n"] / 100), case["n"])
    robust = {"robust_accuracy": case["robust_accuracy"], "robust_ci95": [round(100 * low, 4), round(100 * high, 4)]}
    return {**{key: fewest[key] for key in ("clean_accuracy", "clean_ci95")}, **robust, "n": case["n"]}
