"""What a reader must know before believing an evaluation, found in its own numbers.

Two sources: what the defense answered when it was checked (`maep.evaluation.audit.gradient_masking`), and rows that
should not stand as they do beside each other. A red finding says that the adaptive numbers are too good to be believed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from maep.attacks.threat_models import Adaptive, AdaptiveEot, BlackBox, Bpda, Oblivious, threat_model
from maep.evaluation.audit.gradient_masking import median_error
from maep.evaluation.reporting.rows import Combination
from maep.evaluation.scoring.plan import eps_text

IDENTITIES = ("identity", "classifier", "purifier")
PASSED, WARNING, ALARM = "passed", "warning", "alarm"
ADAPTIVE = (Adaptive.name, AdaptiveEot.name)
# Thresholds: AutoAttack's own for Square (0.2 points); the others are far from what honest models show.
SQUARE_POINTS = 0.2
DISAGREEMENT = 0.1
VANISHING = 1e-3
FALLING = 0.1
CHANCE = 2.0


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. level: `passed`, `warning` or `alarm` (then it is said in red). text: a sentence."""

    check: str
    level: str
    text: str


def findings(checks: dict[str, Any], rows: Sequence[Combination], classes: int) -> list[Finding]:
    """All findings on one purifier, alarms first. checks: its checks.json; rows: its rows; classes: how many."""
    found = [
        *_randomness(checks, rows),
        *_gradients(checks),
        *_finite_differences(checks),
        *_rising(checks["against_eps"], "eps", checks["eps"]),
        *_rising([{**checks["against_eps"][0], "steps": 0}, *checks["against_steps"]], "steps", checks["eps"]),
        *_large_budget(checks, classes),
        *_stronger(rows, Oblivious.name, "transfer", "attacks that know only the classifier"),
        *_stronger(rows, Bpda.name, "bpda", "attacks that take the purifier for the identity"),
        *_stronger(rows, BlackBox.name, "square", "Square, which needs no gradient,"),
        *_square_inside(rows),
        *_rounding(rows),
    ]
    return sorted(found, key=lambda finding: (ALARM, WARNING, PASSED).index(finding.level))


def _randomness(checks: dict[str, Any], rows: Sequence[Combination]) -> Iterator[Finding]:
    if not checks["random"]:
        yield Finding("randomness", PASSED, "the output is the same every time")
    elif any(row.result["threat_model"] == AdaptiveEot.name for row in rows):
        spread = checks["logit_spread"]
        yield Finding("randomness", PASSED, f"the output is random (logits differ by up to {spread:.2g}); EOT was run")
    else:
        yield Finding("randomness", ALARM, "the output is random and no attack averaged over it: run adaptive-eot")


def _gradients(checks: dict[str, Any]) -> Iterator[Finding]:
    sizes = checks["gradients"]
    if not checks["has_gradient"]:
        yield Finding("gradients", ALARM, "the defence gives no gradient: gradient attacks saw zeros")
        return
    if sizes["zero_share"]:
        share = 100 * sizes["zero_share"]
        yield Finding("gradients", ALARM, f"{share:.0f} % of the images have a gradient of exactly zero: it is masked")
        return
    ratio = sizes["median_norm"] / max(sizes["undefended_median_norm"], 1e-30)
    if ratio < VANISHING:
        yield Finding("gradients", ALARM, f"gradients vanish: {ratio:.1g} of the classifier's own")
    else:
        yield Finding("gradients", PASSED, f"gradients are there, {ratio:.2g} of the classifier's own in the median")


def _finite_differences(checks: dict[str, Any]) -> Iterator[Finding]:
    error = median_error(checks["finite_differences"])
    text = f"gradients and finite differences differ by {100 * error:.2g} % in the median"
    wrong = error > DISAGREEMENT
    yield Finding(
        "finite differences", ALARM if wrong else PASSED, text + (": they are not true ones" if wrong else "")
    )


def _rising(curve: Sequence[dict[str, float]], what: str, eps: float) -> Iterator[Finding]:
    """The attack's loss must rise with its budget, and with its steps, as long as images stand."""
    name, of = f"loss against {what}", {"eps": "ε", "steps": "steps"}[what]
    if not eps:
        return
    falls = [
        later
        for number, later in enumerate(curve[1:], 1)
        if later["accuracy"] and later["loss"] < (1 - FALLING) * max(point["loss"] for point in curve[:number]) - 1e-3
    ]
    first, last = curve[0]["loss"], curve[-1]["loss"]
    if falls:
        yield Finding(
            name, ALARM, f"the attack's loss falls with more {of}, at {falls[0][what]:.3g}: it is not followed"
        )
    elif last <= first + 1e-3:
        yield Finding(name, ALARM, f"the attack's loss does not rise with {of} ({first:.3g} to {last:.3g})")
    else:
        yield Finding(name, PASSED, f"the attack's loss rises with {of}, from {first:.3g} to {last:.3g}")


def _large_budget(checks: dict[str, Any], classes: int) -> Iterator[Finding]:
    """Within a huge budget an attack must succeed."""
    if not checks["eps"]:
        return
    last = checks["against_eps"][-1]
    text = f"{last['accuracy']:.0f} % stand against PGD-20 within ε = {last['eps']:.3g}, eight times the budget"
    stands = last["accuracy"] > CHANCE * 100 / classes + 5
    yield Finding("large budget", ALARM if stands else PASSED, text + (": gradients are masked" if stands else ""))


def stood(rows: Iterable[Combination]) -> dict[int, bool]:
    """By sample index, whether an image stood against every row's attack; only images that all rows have."""
    found: dict[int, bool] | None = None
    for row in rows:
        found = row.right if found is None else {i: found[i] and row.right[i] for i in found if i in row.right}
    return found or {}


def _budgets(rows: Sequence[Combination]) -> list[float]:
    return list(dict.fromkeys(row.result["eps"] for row in rows))


def _stronger(rows: Sequence[Combination], threat: str, check: str, who: str) -> Iterator[Finding]:
    """An attacker who knows less must not do better than the adaptive one, image by image over all its attacks."""
    for eps in _budgets(rows):
        of = [row for row in rows if row.result["eps"] == eps]
        weaker = stood(row for row in of if row.result["threat_model"] == threat)
        adaptive = stood(row for row in of if row.result["threat_model"] in ADAPTIVE)
        common = [index for index in adaptive if index in weaker]
        if not common:
            continue
        left, right = (100 * sum(each[index] for index in common) / len(common) for each in (weaker, adaptive))
        text = f"ε = {eps_text(eps)}: {left:.1f} % stand against {who} and {right:.1f} % against the adaptive attacker"
        beaten = left < right - (SQUARE_POINTS if threat == BlackBox.name else 0)
        worse = ": the adaptive attack is too weak and its number too good"
        yield Finding(check, ALARM if beaten else PASSED, text + (worse if beaten else ""))


def _square_inside(rows: Sequence[Combination]) -> Iterator[Finding]:
    """AutoAttack's own sign: Square broke what its gradient attacks left."""
    for row in rows:
        told = [warning for warning in row.warnings if warning.startswith("Square Attack has decreased")]
        if told and threat_model(row.result["threat_model"]).uses_purifier:
            yield Finding("square", ALARM, f"{row.result['threat_model']}, {row.result['attack']}: {told[0]}")


def _rounding(rows: Sequence[Combination]) -> Iterator[Finding]:
    """Adversarial images as files have 256 levels: do they keep their budget, and do they still attack?"""
    outside = [row.result for row in rows if row.result["eps_used_8bit"] > row.result["eps"] * (1 + 1e-4) + 1e-6]
    if outside:
        worst = max(outside, key=lambda result: result["eps_used_8bit"] - result["eps"])
        text = (
            f"rounded to 8 bits, images of {worst['attack']} use {worst['eps_used_8bit']:.4g} of ε = {worst['eps']:.4g}"
        )
        yield Finding("8-bit budget", WARNING, text)
    else:
        yield Finding("8-bit budget", PASSED, "the budget is kept after rounding to 8 bits")
    change = max((row.result["robust_accuracy_8bit"] - row.result["robust_accuracy"] for row in rows), key=abs)
    text = f"rounding the attacked images to 8 bits moves robust accuracy by up to {change:+.1f} points"
    yield Finding("8-bit accuracy", WARNING if abs(change) > max(2, 150 / rows[0].result["n"]) else PASSED, text)


def worst_case(rows: Sequence[Combination]) -> list[dict[str, Any]]:
    """For each budget, the share in percent of the images that stood against every attack of every threat model."""
    found = []
    for eps in _budgets(rows):
        standing = stood(row for row in rows if row.result["eps"] == eps)
        share = round(100 * sum(standing.values()) / len(standing), 4)
        found.append({"eps": eps, "n": len(standing), "robust_accuracy": share})
    return found


@dataclass(frozen=True)
class Judged:
    """All that was found of one purifier. name: as in reports; plan, checks, purifying: what those files hold."""

    name: str
    plan: dict[str, Any]
    rows: list[Combination]
    checks: dict[str, Any]
    purifying: dict[str, Any]

    @property
    def findings(self) -> list[Finding]:
        """The outcome of every check, alarms first."""
        return findings(self.checks, self.rows, len(self.plan["classes"]))

    def honesty(self) -> dict[str, Any]:
        """As in report.json: findings, what stood against every attack, and the answers behind them."""
        answers = {name: value for name, value in self.checks.items() if name not in IDENTITIES}
        found = [asdict(finding) for finding in self.findings]
        return {"findings": found, "worst_case": worst_case(self.rows), "checks": answers}


def side_by_side(judged: Sequence[Judged]) -> list[Combination]:
    """All rows, those of one threat model, attack and budget together."""
    keys = ("threat_model", "attack", "norm", "eps")
    groups: dict[tuple[Any, ...], list[Combination]] = {}
    for one in judged:
        for row in one.rows:
            groups.setdefault(tuple(row.result[key] for key in keys), []).append(row)
    return [row for group in groups.values() for row in group]
