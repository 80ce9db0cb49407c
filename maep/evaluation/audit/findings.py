"""What a reader must know before believing an evaluation, found in its own numbers.

Two sources: what the defense answered when it was checked (`maep.evaluation.audit.gradient_masking`), and rows that
should not stand as they do beside each other. A red finding says that the adaptive numbers are too good to be believed.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from maep.attacks.threat_models import (
    Adaptive,
    AdaptiveEot,
    AuxiliaryAware,
    BlackBox,
    Bpda,
    BpdaIntermediate,
    Oblivious,
    Surrogate,
    Twin,
    threat_model,
)
from maep.config.published_classifiers import TEST_IMAGES, PublishedClassifier
from maep.evaluation.audit.finding import ALARM, PASSED, WARNING, Finding, Level
from maep.evaluation.audit.first_minute import accuracy_finding
from maep.evaluation.audit.gradient_masking import CheckAnswers, CurvePoint, median_error
from maep.evaluation.audit.purification_cost import PurificationCost
from maep.evaluation.reporting.rows import Combination
from maep.evaluation.scoring.chunk_attack import is_within
from maep.evaluation.scoring.plan import Plan
from maep.evaluation.scoring.subject import Subject
from maep.evaluation.scoring.tasks import eps_text

ADAPTIVE = (Adaptive.name, AdaptiveEot.name)
# Points by which Square may break more than the adaptive attacker: AutoAttack's own threshold for calling an
# evaluation unreliable. The others lie between what the honest defenses of tests/reports show and what masked ones do.
SQUARE_POINTS = 0.2
# Median relative difference of gradients and finite differences: honest ones have up to 0.01, a false gradient about 1.
DISAGREEMENT = 0.1
# Share of the undefended classifier's gradient norm: honest defenses have 0.4 to 1.1 of it, masked ones next to none.
VANISHING = 1e-3
# Share by which an attack's loss may fall from one point of its curve to a later one: honest defenses show no fall,
# masked ones (8-bit rounding, JPEG) a third and more; a tenth is left to PGD's random starts.
FALLING = 0.1
FLAT = 1e-3  # a difference of losses that is none: what rounding to fp32 and the order of sums leave
# Accuracy that may be left within eight times the budget: twice that of guessing, and five points for few images.
CHANCE, CHANCE_POINTS = 2.0, 5
# Share of planted images that an attack must find: Zimmermann et al. ask for nearly all, so one of 16 may be missed.
MOST_FOUND = 0.9
# Points that rounding to 8 bits, or luck, may move robust accuracy by: two, or one and a half images if that is more.
SMALL_POINTS, SMALL_IMAGES = 2.0, 1.5
# Structural similarity of purified clean images to the clean ones: of tests/reports, all that another classifier can
# read have 0.66 and more, what a purifier made up for its own classifier 0.01 to 0.07.
UNLIKE = 0.3
# Points by which a published classifier's clean accuracy may differ: what other kernels and precisions make of it, and
# of a sample of its test images so many deviations.
PUBLISHED_POINTS, DEVIATIONS = 0.3, 3.3


@dataclass(frozen=True)
class WorstCase:
    """Of n images, the share in percent that stood against every attack of every threat model within eps."""

    eps: float
    n: int
    robust_accuracy: float


@dataclass(frozen=True)
class Honesty:
    """What report.json says of how far a purifier's numbers can be believed, and why."""

    findings: tuple[Finding, ...]
    worst_case: tuple[WorstCase, ...]
    checks: CheckAnswers


@dataclass(frozen=True)
class PurifierResult:
    """All that was evaluated of one purifier. name: as in reports. subject: None in runs that wrote none down.
    published: what its classifier is said to be.
    """

    name: str
    plan: Plan
    rows: list[Combination]
    checks: CheckAnswers
    cost: PurificationCost
    subject: Subject | None = None
    published: PublishedClassifier | None = None

    @property
    def findings(self) -> list[Finding]:
        """The outcome of every check, alarms first."""
        approximates = self.subject is not None and self.subject.kind == "defended"
        outcomes = findings(self.checks, self.rows, len(self.plan.classes), approximates=approximates)
        own = self.subject.findings if self.subject else ()
        return _by_level([*outcomes, *_published(self.rows, self.published), *own])

    @property
    def alarms(self) -> tuple[str, ...]:
        """Names of the checks that set off an alarm."""
        return tuple(dict.fromkeys(finding.check for finding in self.findings if finding.level == ALARM))

    def honesty(self) -> Honesty:
        """As in report.json: findings, what stood against every attack, and the answers behind them."""
        return Honesty(tuple(self.findings), tuple(worst_case(self.rows)), self.checks)


def findings(
    checks: CheckAnswers, rows: Sequence[Combination], classes: int, *, approximates: bool = False
) -> list[Finding]:
    """All findings on one purifier, alarms first. rows: its own; classes: how many the images have.

    approximates: it is no purifier, but a defense that brings its own approximation for BPDA.
    """
    follow = "follow the defense's approximation" if approximates else "take the purifier for the identity"
    from_clean = [replace(checks.against_eps[0], steps=0), *checks.against_steps]
    outcomes = [
        *_randomness(checks, rows),
        *_gradients(checks, "the defense's approximation" if approximates else "the classifier at the purified point"),
        *_finite_differences(checks),
        *_rising(checks.against_eps, "eps", checks.eps),
        *_rising(from_clean, "steps", checks.eps),
        *_large_budget(checks, classes),
        *_planted(checks),
        *_stronger(rows, Oblivious.name, "transfer", "attacks that know only the classifier"),
        *_stronger(rows, Twin.name, "twin", "attacks on an independently trained twin"),
        *_stronger(rows, Bpda.name, "bpda", f"attacks that {follow}"),
        *_stronger(rows, BpdaIntermediate.name, "bpda-intermediate", "attacks that follow what its steps go through"),
        *_stronger(rows, AuxiliaryAware.name, "auxiliary-aware", "attacks that lower the defense's own loss as well"),
        *_stronger(rows, Surrogate.name, "surrogate", "attacks that follow fewer steps than are taken"),
        *_stronger(rows, BlackBox.name, "square", "Square, which needs no gradient,"),
        *_square_inside(rows),
        *_smaller_budgets(rows),
        *_rounding(rows),
        *_chance(rows, classes),
        *_unlike(rows),
    ]
    return _by_level(outcomes)


def _by_level(outcomes: Sequence[Finding]) -> list[Finding]:
    return sorted(outcomes, key=lambda finding: (ALARM, WARNING, PASSED).index(finding.level))


def _chance(rows: Sequence[Combination], classes: int) -> Iterator[Finding]:
    """Robustness of a model that guesses says nothing; one that does not is not worth a line."""
    row = max(rows, key=lambda row: row.result.n).result
    finding = accuracy_finding(round(row.clean_accuracy * row.n / 100), row.n, classes)
    if finding.level == ALARM:
        yield finding


def _published(rows: Sequence[Combination], published: PublishedClassifier | None) -> Iterator[Finding]:
    """Whether a published classifier is as accurate as it is said to be: with another normalisation, padding or
    activation its weights load as well, and the accuracy is plausible and wrong.

    Of fewer images than it was measured on, as near as a sample of these is but once in a thousand times.
    """
    if published is None:
        return
    row = max(rows, key=lambda row: row.result.n).result
    share = published.clean / 100
    sample = 100 * math.sqrt(share * (1 - share) / row.n * max(0.0, 1 - row.n / TEST_IMAGES))
    right = row.undefended_clean_accuracy
    text = f"the classifier alone is right on {right:.1f} % of {row.n} clean images, {published.clean} % are published"
    if abs(right - published.clean) <= PUBLISHED_POINTS + DEVIATIONS * sample:
        yield Finding("published accuracy", PASSED, text)
    else:
        yield Finding("published accuracy", ALARM, f"{text}: it is another network, or was given other images")


def _unlike(rows: Sequence[Combination]) -> Iterator[Finding]:
    """What a purifier makes may be no image; as of `_chance`, that it is one is not worth a line."""
    row = max(rows, key=lambda row: row.result.n).result
    if row.ssim_clean < UNLIKE:
        likeness = f"SSIM {row.ssim_clean:.2f}, {row.psnr_clean:.1f} dB in the mean of {row.n}"
        text = f"purified clean images are unlike the clean ones ({likeness})"
        yield Finding("purified images", WARNING, f"{text}: no other classifier can be expected to read them")


def _randomness(checks: CheckAnswers, rows: Sequence[Combination]) -> Iterator[Finding]:
    if not checks.random:
        yield Finding("randomness", PASSED, "the output is the same every time")
    elif any(row.result.threat_model == AdaptiveEot.name for row in rows):
        text = f"the output is random (logits differ by up to {checks.logit_spread:.2g}); EOT was run"
        yield Finding("randomness", PASSED, text)
    else:
        yield Finding("randomness", ALARM, "the output is random and no attack averaged over it: run adaptive-eot")


def _gradients(checks: CheckAnswers, instead: str) -> Iterator[Finding]:
    sizes = checks.gradients
    if not checks.has_gradient:
        seen = "zeros" if sizes.zero_share == 1 else f"that of {instead} (BPDA)"
        yield Finding("gradients", ALARM, f"the defense gives no gradient: gradient attacks saw {seen}")
        return
    if sizes.zero_share:
        share = 100 * sizes.zero_share
        yield Finding("gradients", ALARM, f"{share:.0f} % of the images have a gradient of exactly zero: it is masked")
        return
    ratio = sizes.median_norm / max(sizes.undefended_median_norm, 1e-30)  # a classifier may have none itself
    if ratio < VANISHING:
        yield Finding("gradients", ALARM, f"gradients vanish: {ratio:.1g} of the classifier's own")
    else:
        yield Finding("gradients", PASSED, f"gradients are there, {ratio:.2g} of the classifier's own in the median")


def _finite_differences(checks: CheckAnswers) -> Iterator[Finding]:
    error = median_error(checks.finite_differences)
    text = f"gradients and finite differences differ by {100 * error:.2g} % in the median"
    is_false = error > DISAGREEMENT
    level: Level = ALARM if is_false else PASSED
    yield Finding("finite differences", level, text + (": they are not true ones" if is_false else ""))


def _rising(curve: Sequence[CurvePoint], axis: Literal["eps", "steps"], eps: float) -> Iterator[Finding]:
    """The attack's loss must rise with its budget, and with its steps, as long as images stand."""
    name, label = f"loss against {axis}", {"eps": "ε", "steps": "steps"}[axis]
    if not eps:
        return
    falls = [
        later
        for number, later in enumerate(curve[1:], 1)
        if later.accuracy and later.loss < (1 - FALLING) * max(point.loss for point in curve[:number]) - FLAT
    ]
    first, last = curve[0].loss, curve[-1].loss
    if falls:
        where = falls[0].eps if axis == "eps" else falls[0].steps
        yield Finding(name, ALARM, f"the attack's loss falls with more {label}, at {where:.3g}: it is not followed")
    elif last <= first + FLAT:
        yield Finding(name, ALARM, f"the attack's loss does not rise with {label} ({first:.3g} to {last:.3g})")
    else:
        yield Finding(name, PASSED, f"the attack's loss rises with {label}, from {first:.3g} to {last:.3g}")


def _large_budget(checks: CheckAnswers, classes: int) -> Iterator[Finding]:
    """Within a huge budget an attack must succeed."""
    if not checks.eps:
        return
    last = checks.against_eps[-1]
    text = f"{last.accuracy:.0f} % stand against PGD-20 within ε = {last.eps:.3g}, eight times the budget"
    stands = last.accuracy > CHANCE * 100 / classes + CHANCE_POINTS
    yield Finding("large budget", ALARM if stands else PASSED, text + (": gradients are masked" if stands else ""))


def _planted(checks: CheckAnswers) -> Iterator[Finding]:
    """What is known to be there must be found."""
    if checks.planted is None or not checks.planted.planted:
        return
    planted, found = checks.planted.planted, checks.planted.found
    text = f"PGD-20 finds {found} of {planted} adversarial images that were planted within ε = {eps_text(checks.eps)}"
    is_weak = found < MOST_FOUND * planted
    yield Finding("planted", ALARM if is_weak else PASSED, text + (": it is too weak here" if is_weak else ""))


def robust_images(rows: Iterable[Combination]) -> dict[int, bool]:
    """By sample index, whether an image stood against every row's attack; only images that all rows have."""
    robust: dict[int, bool] | None = None
    for row in rows:
        robust = (
            row.correct if robust is None else {i: robust[i] and row.correct[i] for i in robust if i in row.correct}
        )
    return robust or {}


def shares_of_common(one: Mapping[int, bool], other: Mapping[int, bool]) -> tuple[int, float, float]:
    """How many images both have, and the percent of them that stood in each; (0, nan, nan) of none."""
    common = one.keys() & other.keys()
    if not common:
        return 0, math.nan, math.nan
    share, other_share = (100 * sum(stood[index] for index in common) / len(common) for stood in (one, other))
    return len(common), share, other_share


def _budgets(rows: Sequence[Combination]) -> list[float]:
    return list(dict.fromkeys(row.result.eps for row in rows))


def _stronger(rows: Sequence[Combination], threat: str, check: str, who: str) -> Iterator[Finding]:
    """An attacker who knows less must not do better than the adaptive one, image by image over all its attacks."""
    for eps in _budgets(rows):
        at_eps = [row for row in rows if row.result.eps == eps]
        weaker = robust_images(row for row in at_eps if row.result.threat_model == threat)
        adaptive = robust_images(row for row in at_eps if row.result.threat_model in ADAPTIVE)
        images, share, adaptive_share = shares_of_common(weaker, adaptive)
        if not images:
            continue
        against = f"{share:.1f} % stand against {who} and {adaptive_share:.1f} % against the adaptive attacker"
        text = f"ε = {eps_text(eps)}: {against}"
        is_beaten = share < adaptive_share - (SQUARE_POINTS if threat == BlackBox.name else 0)
        verdict = ": the adaptive attack is too weak and its number too good"
        yield Finding(check, ALARM if is_beaten else PASSED, text + (verdict if is_beaten else ""))


def _square_inside(rows: Sequence[Combination]) -> Iterator[Finding]:
    """AutoAttack's own sign: Square broke what its gradient attacks left."""
    for row in rows:
        if row.square_warning and threat_model(row.result.threat_model).uses_purifier:
            text = f"{row.result.threat_model}, {row.result.attack}: {row.square_warning}"
            yield Finding("square", ALARM, text)


def _smaller_budgets(rows: Sequence[Combination]) -> Iterator[Finding]:
    """A ball holds the smaller ones: an attack that finds more within those did not find what is in it.

    Who knows the purifier should have: an alarm. Who does not know it has images that the purifier was not made for.
    """
    attacks: dict[tuple[str, str, str], list[Combination]] = {}
    for row in sorted(rows, key=lambda row: row.result.eps):
        attacks.setdefault((row.result.threat_model, row.result.attack, row.result.norm), []).append(row)
    falls: list[tuple[float, Level, str]] = []
    for (threat, attack, _norm), by_budget in attacks.items():
        for small, large in combinations(by_budget, 2):
            images, within, beyond = shares_of_common(small.correct, large.correct)
            if images and beyond - within > _small(images):
                level: Level = ALARM if threat_model(threat).uses_purifier else WARNING
                sizes = eps_text(small.result.eps), eps_text(large.result.eps)
                text = (f"{threat}, {attack}: {within:.1f} % stand within ε = {sizes[0]} and {beyond:.1f} % within "
                        f"{sizes[1]}, of the same {images} images: the worst case counts both")  # fmt: skip
                falls.append((beyond - within, level, text))
    if falls:
        alarms = [fall for fall in falls if fall[1] == ALARM]
        _points, worst, text = max(alarms or falls)
        yield Finding("smaller budget", worst, text)
    elif any(len(by_budget) > 1 for by_budget in attacks.values()):
        yield Finding("smaller budget", PASSED, "no attack within a smaller budget leaves fewer images")


def _small(images: int) -> float:
    """Points of robust accuracy, of so many images, that say nothing."""
    return max(SMALL_POINTS, 100 * SMALL_IMAGES / images)


def _rounding(rows: Sequence[Combination]) -> Iterator[Finding]:
    """Adversarial images as files have 256 levels: do they keep their budget, and do they still attack?"""
    outside = [row.result for row in rows if not is_within(row.result.eps_used_8bit, row.result.eps)]
    if outside:
        worst = max(outside, key=lambda result: result.eps_used_8bit - result.eps)
        text = f"rounded to 8 bits, images of {worst.attack} use {worst.eps_used_8bit:.4g} of ε = {worst.eps:.4g}"
        yield Finding("8-bit budget", WARNING, text)
    else:
        yield Finding("8-bit budget", PASSED, "the budget is kept after rounding to 8 bits")
    changes = ((row.result.robust_accuracy_8bit - row.result.robust_accuracy, row.result.n) for row in rows)
    change, n = max(changes, key=lambda each: abs(each[0]))
    text = f"rounding the attacked images to 8 bits moves robust accuracy by up to {change:+.1f} points"
    is_large = abs(change) > _small(n)
    yield Finding("8-bit accuracy", WARNING if is_large else PASSED, text)


def worst_case(rows: Sequence[Combination]) -> list[WorstCase]:
    """For each budget, the share in percent of the images that stood against every attack of every threat model within
    it, those of smaller budgets included.
    """
    cases = []
    for eps in _budgets(rows):
        robust = robust_images(row for row in rows if row.result.eps <= eps)
        cases.append(WorstCase(eps, len(robust), round(100 * sum(robust.values()) / len(robust), 4)))
    return cases


def side_by_side(results: Sequence[PurifierResult]) -> list[Combination]:
    """All rows, those of one threat model, attack and budget together."""
    groups: dict[tuple[str, str, str, float], list[Combination]] = {}
    for result in results:
        for row in result.rows:
            key = (row.result.threat_model, row.result.attack, row.result.norm, row.result.eps)
            groups.setdefault(key, []).append(row)
    return [row for group in groups.values() for row in group]
