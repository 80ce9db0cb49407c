"""What a purifier is worth in one picture: oblivious, every attacker, certified, and a plainly trained classifier.

From above, an attacker who does not know the purifier shows the least; whoever knows it shows more; a certificate
bounds from below what any attacker could, in its own norm. Beside them stands what adversarial training of the
classifier itself reaches: a purifier that does worse is not worth its cost.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from maep.attacks.catalog import is_autoattack, title_of
from maep.attacks.threat_models import Oblivious, threat_model
from maep.config.schema import Settings
from maep.evaluation.audit.findings import PurifierResult, robust_images
from maep.evaluation.reporting.figures import BLUE, COLOURS, GREY, INK, ORANGE, drawn, letters_room, style_axes
from maep.evaluation.reporting.report_certificate import CertificateRow
from maep.evaluation.reporting.report_document import REPORT, Baseline, Report
from maep.evaluation.reporting.report_row import Interval
from maep.evaluation.reporting.rows import Combination, percent_with_interval
from maep.evaluation.scoring.defense import UNDEFENDED
from maep.evaluation.scoring.tasks import eps_text
from maep.runtime.errors import fail

SHOWN = (0.25, 0.5)  # radii of certificates, as papers print them; beyond, little stands of most
KINDS = {"clean": ORANGE, "oblivious": GREY, "every attacker": BLUE, "certified": COLOURS[2]}


@dataclass(frozen=True)
class Bound:
    """One bar. kind: of `KINDS`; text: what it is; accuracy, interval: of n images, in percent."""

    kind: str
    text: str
    accuracy: float
    interval: Interval
    n: int


@dataclass(frozen=True)
class Bounds:
    """The bars of one purifier, or of the baseline. image_set: of the attacks, as in the report's rows."""

    name: str
    bars: tuple[Bound, ...]
    image_set: str

    def of(self, kind: str) -> Bound | None:
        """The first bar of a kind."""
        return next((bar for bar in self.bars if bar.kind == kind), None)


def bounds_of(results: Sequence[PurifierResult], certificates: Sequence[CertificateRow]) -> list[Bounds]:
    """Of every purifier, at the first budget."""
    return [
        Bounds(result.name, tuple(_bars(result, certificates)), result.rows[0].result.image_set) for result in results
    ]


def _bars(result: PurifierResult, certificates: Sequence[CertificateRow]) -> Iterator[Bound]:
    first = max((row.result for row in result.rows), key=lambda row: row.n)
    yield Bound("clean", "not attacked", first.clean_accuracy, first.clean_ci95, first.n)
    budget = f"{first.norm} {eps_text(result.rows[0].result.eps)}"
    rows = [row for row in result.rows if row.result.eps == result.rows[0].result.eps]
    unaware = [row for row in rows if row.result.threat_model == Oblivious.name]
    if unaware:
        yield _stood("oblivious", f"oblivious attacker, {budget}", unaware)
    if any(threat_model(row.result.threat_model).knows_purifier for row in rows):
        yield _stood("every attacker", f"every attacker, {budget}", rows)
    for row in certificates:
        for radius in SHOWN if row.purifier == result.name else ():
            value, interval = row.at(radius)
            yield Bound("certified", f"certified if smoothed, L2 {radius:g}, σ = {row.sigma:g}", value, interval, row.n)


def _stood(kind: str, text: str, rows: Sequence[Combination]) -> Bound:
    """What stood against all attacks of some rows, of the images that all of them have."""
    stood = robust_images(rows)
    return Bound(kind, text, *percent_with_interval(sum(stood.values()), len(stood)), len(stood))


def read_baseline(settings: Settings) -> Baseline | None:
    """The classifier of `evaluation.baseline`, under the strongest attack on it at the first budget; None without one.

    Raises UserError where there is no report, or none with that norm and budget.
    """
    if settings.evaluation.baseline is None:
        return None
    path, evaluation = Path(settings.evaluation.baseline), settings.evaluation
    path = path / REPORT if path.is_dir() else path
    if not path.is_file():
        fail(f"evaluation.baseline={evaluation.baseline}: no such run or report.json")
    same = [
        row
        for row in Report.read(path).results
        if row.norm == evaluation.norm and math.isclose(row.eps, evaluation.eps[0], rel_tol=1e-6)
        if row.threat_model == Oblivious.name or row.purifier == UNDEFENDED
    ]
    if not same:
        fail(
            f"evaluation.baseline={evaluation.baseline}: its classifier was not attacked within {evaluation.norm} "
            f"{eps_text(evaluation.eps[0])}; name another report, or leave it out"
        )
    worst = min(same, key=lambda row: (row.undefended_robust_accuracy, not is_autoattack(row.attack)))
    robust, clean = (
        percent_with_interval(round(value * worst.n / 100), worst.n)
        for value in (worst.undefended_robust_accuracy, worst.undefended_clean_accuracy)
    )
    return Baseline(
        classifier=worst.classifier, dataset=worst.dataset, attack=worst.attack, norm=worst.norm, eps=worst.eps,
        n=worst.n, clean_accuracy=clean[0], clean_ci95=clean[1], robust_accuracy=robust[0], robust_ci95=robust[1],
        image_set=worst.image_set,
    )  # fmt: skip


def baseline_bounds(baseline: Baseline) -> Bounds:
    """Its bars."""
    budget = f"{title_of(baseline.attack)}, {baseline.norm} {eps_text(baseline.eps)}"
    return Bounds(
        f"plain: {baseline.classifier}",
        (
            Bound("clean", "not attacked", baseline.clean_accuracy, baseline.clean_ci95, baseline.n),
            Bound("every attacker", budget, baseline.robust_accuracy, baseline.robust_ci95, baseline.n),
        ),
        baseline.image_set,
    )


def baseline_notes(bounds: Sequence[Bounds], baseline: Baseline | None) -> Iterator[str]:
    """Whether each purifier does better or worse than its plain baseline, in words."""
    if baseline is None:
        return
    for each in bounds:
        stood = each.of("every attacker")
        if stood is None or each.name == UNDEFENDED:
            continue
        low, high = stood.interval
        sure = high < baseline.robust_ci95[0] or low > baseline.robust_ci95[1]
        how = "worse" if stood.accuracy < baseline.robust_accuracy else "better"
        how = how if stood.accuracy != baseline.robust_accuracy else "no better"
        where = "" if (each.image_set, stood.n) == (baseline.image_set, baseline.n) else ", on other images"
        yield (
            f"{each.name} does {how} than its plain baseline{where}: against whoever knows all, {stood.accuracy:.1f} % "
            f"stand of it and {baseline.robust_accuracy:.1f} % of {baseline.classifier} trained adversarially without "
            f"a purifier{'' if sure else '; their intervals overlap'}"
        )


def is_shown(bounds: Sequence[Bounds]) -> bool:
    """Whether there is more to show than the oblivious attacker."""
    return any(each.of("every attacker") or each.of("certified") for each in bounds)


def bounds_figure(bounds: Sequence[Bounds], ink: str = INK) -> Figure:
    """Bars with their 95 % intervals, one group a purifier, the baseline among them."""
    count = sum(len(each.bars) for each in bounds)
    labels = [label for each in bounds for label in _labels(each)]
    width = max(5.6, 2.2 + letters_room(labels))  # the bars need some of it, whatever names are like
    figure = Figure(figsize=(width, 0.9 + 0.3 * count + 0.25 * len(bounds)), layout="constrained")
    axes, at = figure.subplots(), 0.0
    ticks: list[tuple[float, str]] = []
    for each in bounds:
        for bar in each.bars:
            low, high = bar.interval
            error = [[max(0.0, bar.accuracy - low)], [max(0.0, high - bar.accuracy)]]
            axes.barh(at, bar.accuracy, 0.8, color=KINDS[bar.kind], xerr=error,
                      error_kw={"ecolor": ink, "elinewidth": 1, "capsize": 2.5})  # fmt: skip
            axes.text(102, at, f"{bar.accuracy:.1f}", va="center", fontsize=8, color=ink)
            ticks.append((at, drawn(labels[len(ticks)])))
            at -= 1
        at -= 0.8
    axes.set_yticks(*zip(*ticks, strict=True), fontsize=8)
    axes.set(xlim=(0, 100), ylim=(at + 1.2, 0.6), xlabel="accuracy in %")
    axes.set_xticks(np.arange(0, 101, 20))
    style_axes(axes, ink)
    axes.grid(visible=False, axis="y")
    return figure


def _labels(of: Bounds) -> list[str]:
    """What stands before the bars: the first of them says whose they are."""
    first, *others = [f"{bar.text}, n = {bar.n}" for bar in of.bars]
    return [f"{of.name}: {first}", *others]
