"""The report stage: records → report.json, figures/*.png, report.html and a table on the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from maep.attacks.catalog import is_autoattack
from maep.attacks.threat_models import AdaptiveEot, AuxiliaryAware, BpdaIntermediate, Surrogate, Twin, threat_model
from maep.config.load import to_yaml
from maep.config.published_classifiers import PUBLISHED
from maep.config.schema import Settings
from maep.evaluation.audit.findings import ALARM, PASSED, WARNING, PurifierResult, side_by_side, worst_case
from maep.evaluation.audit.gradient_masking import read_checks
from maep.evaluation.audit.orderings import broken_orders
from maep.evaluation.audit.purification_cost import read_cost
from maep.evaluation.reporting.bounds import (
    baseline_bounds,
    baseline_notes,
    bounds_figure,
    bounds_of,
    is_shown,
    read_baseline,
)
from maep.evaluation.reporting.certificates import (
    attacked_table,
    certificate_figure,
    certificate_notes,
    certificate_rows,
    certificate_table,
)
from maep.evaluation.reporting.curves import Curve, read_curves
from maep.evaluation.reporting.figures import accuracy_figure, checks_figure, curve_figure, samples_figure, save_figure
from maep.evaluation.reporting.provenance import ENVIRONMENT, Environment, write_environment
from maep.evaluation.reporting.report_certificate import CertificateRow
from maep.evaluation.reporting.report_document import REPORT, Report
from maep.evaluation.reporting.report_page import render_page
from maep.evaluation.reporting.report_row import ReportRow
from maep.evaluation.reporting.rows import Combination, combine, headlines, judged_word
from maep.evaluation.reporting.terminal_table import terminal_table
from maep.evaluation.reporting.threat_meanings import KNOWABLE
from maep.evaluation.scoring.chunk_record import read_records
from maep.evaluation.scoring.defense import UNDEFENDED
from maep.evaluation.scoring.plan import read_plan
from maep.evaluation.scoring.reduced_model import SurrogateSettings
from maep.evaluation.scoring.subject import read_subject
from maep.evaluation.scoring.tasks import eps_text
from maep.evaluation.stage import given_name, is_trained, purifiers_of
from maep.purifiers.registry import DEFAULT
from maep.runtime.console import console, say
from maep.runtime.errors import fail
from maep.storage.atomic import atomic_file
from maep.training.metrics_log import UNCOMPILED

__all__ = ["build_report", "write_environment"]


def build_report(
    settings: Settings,
    directory: Path,
    names: Mapping[str, str] | None = None,
    continued: Mapping[str, Sequence[int]] | None = None,
) -> Report:
    """Write report.json, report.html and figures/ into the run directory, print the table, return what is in the first.

    directory: run.dir, with evaluation/ and environment.json, and metrics.jsonl where something was trained.
    names: `{directory below evaluation/: name in reports}` of what was evaluated; default: the run's purifiers.
    continued: `{training: steps at which a longer schedule took over}` of the run's own trainings.
    Raises UserError, naming the first chunk that is missing, when the evaluation is not complete.
    """
    results = read_results(settings, directory / "evaluation", names)
    if continued and names is None and not settings.evaluation.purifier:
        results = [_with_continued(result, settings, continued) for result in results]
    rows = side_by_side(results)
    report = Report(
        environment=Environment.read(directory / ENVIRONMENT),
        results=tuple(row.result for row in rows),
        honesty={result.name: result.honesty() for result in results},
        purifying={result.name: result.cost for result in results},
        certificates=_certificates(settings) if names is None else (),
        baseline=read_baseline(settings),
    )
    curves = read_curves(directory)
    notes = [*honest_notes(settings, results), *_notes_on_compiling(curves)]
    notes += certificate_notes(settings, report.certificates)
    bounds = bounds_of(results, report.certificates)
    notes += baseline_notes(bounds, report.baseline)
    if is_shown(bounds):
        beside = [baseline_bounds(report.baseline)] if report.baseline else []
        save_figure(bounds_figure([*bounds, *beside]), directory / "figures" / "bounds.png")
    _write_figures(directory / "figures", rows, curves, results)
    if report.certificates:
        save_figure(certificate_figure(report.certificates), directory / "figures" / "certificates.png")
    page = render_page(settings, results, rows, curves, notes, report, to_yaml(settings))
    with atomic_file(directory / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    report.write(directory / REPORT)
    for threat in dict.fromkeys(row.result.threat_model for row in rows):
        console.print(terminal_table([row for row in rows if row.result.threat_model == threat]))
    if report.certificates:
        console.print(certificate_table(report.certificates))
        if any(row.attacked for row in report.certificates):
            console.print(attacked_table(report.certificates))
    _say_worst_cases(results)
    _say_findings(results)
    for note in notes:
        say(f"note: {note}")
    say(f"report: {directory / 'report.html'}")
    return report


def _certificates(settings: Settings) -> tuple[CertificateRow, ...]:
    """Of the run's purifiers, where there are to be some."""
    if not settings.certify.sigma:
        return ()
    return tuple(
        certificate_rows(settings, {label: purifier_name(settings, label) for label in purifiers_of(settings)})
    )


def _say_worst_cases(results: Sequence[PurifierResult]) -> None:
    """What stood against every attack: of a defense that several attackers were set on, the number that counts."""
    for result in results:
        if len({row.result.threat_model for row in result.rows}) > 1:
            for case in worst_case(result.rows):
                share = f"{case.robust_accuracy:.1f} % of {case.n} images stood against every attack"
                say(f"{result.name}: worst case within ε = {eps_text(case.eps)}: {share}")


def _say_findings(results: Sequence[PurifierResult]) -> None:
    """Alarms in red, warnings in yellow, and how many checks passed."""
    for result in results:
        findings = result.findings
        for level, colour in ((ALARM, "bold red"), (WARNING, "yellow")):
            for finding in findings:
                if finding.level == level:
                    line = Text(f"{result.name}: {finding.check}: {finding.text}", style=colour)
                    console.print(line, soft_wrap=True, highlight=False)
        passed = sum(finding.level == PASSED for finding in findings)
        say(f"{result.name}: {passed} of {len(findings)} honesty checks passed")


def purifier_name(settings: Settings, label: str) -> str:
    """As in reports: the objective it was trained with, or its kind, and how it was finetuned, such as `maep+lora`.

    One from elsewhere, or that no stage trains, is known by its label alone.
    """
    if settings.evaluation.purifier or not is_trained(settings):
        return label
    name = settings.objective.name if settings.purifier.kind == DEFAULT else settings.purifier.kind
    return name if label == "pretrained" else f"{name}+{label}"


def read_results(settings: Settings, directory: Path, names: Mapping[str, str] | None = None) -> list[PurifierResult]:
    """What was evaluated of each purifier. directory: run.dir/evaluation. names: as `build_report`'s.

    Raises UserError, naming the first chunk that is missing.
    """
    if names is None:
        names = {label: purifier_name(settings, label) for label in purifiers_of(settings)}
    results = [_read_result(settings, directory / label, name) for label, name in names.items()]
    if not results:
        fail(f"{directory}: no purifier was evaluated (evaluation.purifiers={settings.evaluation.purifiers})")
    return results


def _read_result(settings: Settings, directory: Path, name: str) -> PurifierResult:
    plan = read_plan(settings, directory)
    folders = read_records(plan, directory)
    checks = read_checks(plan, directory)
    rows = [combine(settings, name, plan, directory / folder, records) for folder, records in folders.items()]
    subject = read_subject(plan.classifier, plan.purifier, directory)
    cost, identifier = read_cost(plan.purifier, directory), settings.classifier.robustbench
    published = PUBLISHED[identifier] if identifier else None
    return _with_alarms(PurifierResult(name, plan, rows, checks, cost, subject, published))


def _with_alarms(result: PurifierResult) -> PurifierResult:
    """Each row with what it is about, and with the alarms that go with its numbers."""
    subject = result.subject
    entries: dict[str, Any] = {"alarms": result.alarms, "deterministic": not result.checks.random}
    if subject is not None:
        entries |= {"kind": subject.kind, "parameters": subject.parameters}
    return replace(result, rows=[replace(row, result=replace(row.result, **entries)) for row in result.rows])


def _with_continued(
    result: PurifierResult, settings: Settings, continued: Mapping[str, Sequence[int]]
) -> PurifierResult:
    """Each row with the trainings behind its purifier that were made longer."""
    is_finetuned = result.name != purifier_name(settings, "pretrained")
    behind = ("pretrain", "finetune") if is_finetuned else ("pretrain",)
    entry = {name: tuple(steps) for name, steps in continued.items() if name in behind}
    rows = [replace(row, result=replace(row.result, continued=entry or None)) for row in result.rows]
    return replace(result, rows=rows)


def _notes_on_trainings(results: Sequence[PurifierResult]) -> Iterator[str]:
    for result in results:
        for training, steps in (result.rows[0].result.continued or {}).items():
            places = ", ".join(map(str, steps))
            yield (
                f"{result.name}: {training} continued from step {places} with a longer schedule, so it is not the "
                "result of a training of that length from its start"
            )


def honest_notes(settings: Settings, results: Sequence[PurifierResult]) -> list[str]:
    """What a reader must know before believing the numbers, in plain sentences, beside the findings."""
    rows = [row for result in results for row in result.rows]
    notes = [f"{result.name}: AutoAttack says: {warning}" for result in results for warning in result.plan.warnings]
    notes += [f"{result.name}: {note}" for result in results if result.subject for note in result.subject.notes]
    if not any(threat_model(row.result.threat_model).knows_purifier for row in rows):
        knowable = KNOWABLE[judged_word([row.result for row in rows])]
        notes.append(
            f"no attacker who knows the {knowable} was run (adaptive left out): these numbers are no statement about "
            "robustness against one"
        )
    fixed = [
        "the model" if result.name == UNDEFENDED else result.name
        for result in results
        if not result.checks.random and _has(result.rows, AdaptiveEot.name)
    ]
    if fixed:
        notes.append(f"{', '.join(fixed)} draws nothing at random: adaptive-eot is the adaptive attacker there")
    notes += _notes_on_draws(settings, results)
    notes += _notes_on_shown_parts(settings, results)
    notes += _notes_on_surrogates(settings, results)
    notes += _notes_on_twins(settings, results)
    notes += [f"{result.name}: {text}" for result in results for text in broken_orders(result.rows)]
    for row in rows:
        result = row.result
        attack = f"{result.attack} {result.norm} {eps_text(result.eps)}"
        notes += [f"{result.purifier}, {result.threat_model} {attack}: {warning}" for warning in row.warnings]
    return [*notes, *_notes_on_trainings(results), *_notes_on_attacks(settings, [row.result for row in rows])]


def _notes_on_draws(settings: Settings, results: Sequence[PurifierResult]) -> Iterator[str]:
    for result in results:
        draws = result.rows[0].result.draws
        if draws is not None:
            name = "the model" if result.name == UNDEFENDED else result.name
            count = settings.evaluation.decision_draws
            decided_by = "one draw" if count == 1 else f"the commonest answer of {count}"
            yield (
                f"{name} draws at random: its accuracies are those of one draw, and beside them stand the average, the "
                f"majority and the worst of {draws} more. Attacks, AutoAttack among them, decide by {decided_by} "
                "whether an image has fallen; those that average over draws by the mean of their logits"
            )


def _notes_on_shown_parts(settings: Settings, results: Sequence[PurifierResult]) -> Iterator[str]:
    names = [result.name for result in results if _has(result.rows, BpdaIntermediate.name)]
    if names:
        yield (
            f"{', '.join(names)}: bpda-intermediate follows the classifier at all images that the defense goes "
            "through; of one that shows none it is BPDA's attacker"
        )
    names = [result.name for result in results if _has(result.rows, AuxiliaryAware.name)]
    if names:
        yield (
            f"{', '.join(names)}: auxiliary-aware lowers {settings.evaluation.auxiliary_weight:g} times the loss that "
            "the defense descends; of one without it is BPDA's attacker"
        )


def _notes_on_surrogates(settings: Settings, results: Sequence[PurifierResult]) -> Iterator[str]:
    names = [result.name for result in results if _has(result.rows, Surrogate.name)]
    if names:
        share = 100 * settings.evaluation.surrogate_share
        yield (
            f"{', '.join(names)}: surrogate is an attacker who follows {share:.3g} % of the steps, as published "
            "attacks do; a defense without steps is attacked as it is"
        )


def _notes_on_twins(settings: Settings, results: Sequence[PurifierResult]) -> Iterator[str]:
    names = [result.name for result in results if _has(result.rows, Twin.name)]
    if names and settings.evaluation.twin:
        yield (
            f"{', '.join(names)}: twin is an attacker who follows another purifier of the same kind, "
            f"{given_name(Path(settings.evaluation.twin))}, with its gradients, and does not know the weights that "
            "are judged"
        )


def _notes_on_compiling(curves: Mapping[str, Curve]) -> Iterator[str]:
    for name, lines in curves.items():
        if any(line.get(UNCOMPILED) for line in lines):
            yield f"{name}: torch.compile failed, so it was done uncompiled; its last bits may be others"


def _notes_on_attacks(settings: Settings, rows: Sequence[ReportRow]) -> list[str]:
    """rows: of all results, since not everything that the settings name is run by every attacker."""
    notes, surrogate = [], SurrogateSettings.of(settings.evaluation)
    if not surrogate.is_exact:
        notes.append(
            f"attacks followed a fast surrogate of the model ({surrogate}); every verdict is the model's own, in fp32"
        )
    if any(row.attack.startswith(("pgd", "bim")) for row in rows):
        notes.append("PGD and BIM step by eps/4 (2/255 at eps = 8/255); one try, the last iterate counts")
    knowing = [row for row in rows if threat_model(row.threat_model).knows_purifier]
    if not any(is_autoattack(row.attack) for row in rows):
        notes.append("AutoAttack was not run; single gradient attacks overestimate robustness")
    elif knowing and not any(is_autoattack(row.attack) for row in knowing):
        notes.append("AutoAttack was run on the classifier alone; single gradient attacks overestimate robustness")
    return notes


def _has(rows: Sequence[Combination], threat: str) -> bool:
    return any(row.result.threat_model == threat for row in rows)


def _write_figures(
    folder: Path, rows: Sequence[Combination], curves: Mapping[str, Curve], results: Sequence[PurifierResult]
) -> None:
    save_figure(accuracy_figure(rows), folder / "accuracy.png")
    for each in results:
        save_figure(checks_figure(each.checks), folder / f"checks-{each.name}.png")
    for name, lines in curves.items():
        save_figure(curve_figure(lines), folder / f"{name}.png")
    for row in headlines(rows):
        if row.samples:
            result = row.result
            attack = f"{result.threat_model}-{result.attack}-{result.norm}-{result.eps:.6g}"
            save_figure(
                samples_figure(row.samples, judged_word([result])), folder / f"samples-{result.purifier}-{attack}.png"
            )
