"""The report stage: records → report.json, figures/*.png, report.html and a table on the terminal."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from maep.attacks.catalog import is_autoattack
from maep.attacks.threat_models import AdaptiveEot, threat_model
from maep.config.load import to_yaml
from maep.config.schema import Settings
from maep.evaluation.audit.findings import ALARM, PASSED, WARNING, Judged, side_by_side
from maep.evaluation.reporting.figures import accuracy_figure, checks_figure, curve_figure, samples_figure, save_figure
from maep.evaluation.reporting.provenance import ENVIRONMENT, write_environment
from maep.evaluation.reporting.report_page import render_page
from maep.evaluation.reporting.rows import Combination, combine, headlines
from maep.evaluation.scoring.plan import eps_text, read_checks, read_plan, read_purifying, read_records
from maep.evaluation.scoring.reduced_model import Speed
from maep.evaluation.stage import purifiers_of
from maep.runtime.console import console, say
from maep.runtime.errors import fail
from maep.storage.atomic import atomic_file, read_json, write_json

__all__ = ["build_report", "write_environment"]

SCHEMA = 1
CURVES = {"metrics.jsonl": "pretraining", "metrics-finetune.jsonl": "finetuning"}


def build_report(settings: Settings, directory: Path, names: dict[str, str] | None = None) -> dict[str, Any]:
    """Write report.json, report.html and figures/ into the run directory, print the table, return the JSON.

    directory: run.dir, with evaluation/ and environment.json, and metrics.jsonl where something was trained.
    names: `{directory below evaluation/: name in reports}` of what was judged; default: the run's purifiers.
    Raises UserError, naming the first chunk that is missing, when the evaluation is not complete.
    """
    judged = read_results(settings, directory / "evaluation", names)
    rows = side_by_side(judged)
    environment = read_json(directory / ENVIRONMENT)
    report = {
        "schema": SCHEMA,
        "environment": environment,
        "results": [row.result for row in rows],
        "honesty": {one.name: one.honesty() for one in judged},
        "purifying": {one.name: one.purifying for one in judged},
    }
    curves = {name: read_metrics(directory / file) for file, name in CURVES.items()}
    curves = {name: lines for name, lines in curves.items() if lines}
    notes = honest_notes(settings, judged)
    _write_figures(directory / "figures", rows, curves, judged)
    page = render_page(settings, judged, rows, curves, notes, environment, to_yaml(settings))
    with atomic_file(directory / "report.html") as temporary:
        temporary.write_text(page)
    write_json(directory / "report.json", report)
    for threat in dict.fromkeys(row.result["threat_model"] for row in rows):
        console.print(terminal_table([row for row in rows if row.result["threat_model"] == threat]))
    _say_findings(judged)
    for note in notes:
        say(f"note: {note}")
    say(f"report: {directory / 'report.html'}")
    return report


def _say_findings(judged: Sequence[Judged]) -> None:
    """Alarms in red, warnings in yellow, and how many checks passed."""
    for one in judged:
        found = one.findings
        for level, colour in ((ALARM, "bold red"), (WARNING, "yellow")):
            for finding in found:
                if finding.level == level:
                    line = Text(f"{one.name}: {finding.check}: {finding.text}", style=colour)
                    console.print(line, soft_wrap=True, highlight=False)
        passed = sum(finding.level == PASSED for finding in found)
        say(f"{one.name}: {passed} of {len(found)} honesty checks passed")


def purifier_name(settings: Settings, label: str) -> str:
    """As in reports: the objective it was trained with, and how it was finetuned, such as `maep+lora`.

    One from elsewhere is known by its label alone.
    """
    if settings.evaluation.purifier:
        return label
    return settings.objective.name if label == "pretrained" else f"{settings.objective.name}+{label}"


def read_results(settings: Settings, directory: Path, names: dict[str, str] | None = None) -> list[Judged]:
    """What was found of each purifier. directory: run.dir/evaluation. names: as `build_report`'s.

    Raises UserError, naming the first chunk that is missing.
    """
    judged = []
    if names is None:
        names = {label: purifier_name(settings, label) for label in purifiers_of(settings)}
    for label, name in names.items():
        plan = read_plan(settings, directory / label)
        folders = read_records(plan, directory / label)
        checks = read_checks(plan, directory / label)
        rows = [combine(settings, name, plan, directory / label / folder, folders[folder]) for folder in folders]
        judged.append(Judged(name, plan, rows, checks, read_purifying(plan, directory / label)))
    if not judged:
        fail(f"{directory}: no purifier was evaluated (evaluation.purifiers={settings.evaluation.purifiers})")
    return judged


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl by rising step; [] if there is none.

    A last line that a kill cut short is left out; of a step that a resumed run logged again, the later counts.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    steps: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
        except ValueError:
            if number < len(lines):
                raise
            continue
        steps[values["step"]] = values
    return [steps[step] for step in sorted(steps)]


def honest_notes(settings: Settings, judged: Sequence[Judged]) -> list[str]:
    """What a reader must know before believing the numbers, in plain sentences, beside the findings."""
    rows = [row for one in judged for row in one.rows]
    notes = [f"{one.name}: {warning}" for one in judged for warning in one.plan["warnings"]]
    if not any(threat_model(row.result["threat_model"]).knows_purifier for row in rows):
        notes.append(
            "no attacker who knows the purifier was run (adaptive left out): these numbers are no statement about "
            "robustness against one"
        )
    same = [one.name for one in judged if not one.checks["random"] and _has(one.rows, AdaptiveEot.name)]
    if same:
        notes.append(f"{', '.join(same)} draws nothing at random: adaptive-eot is the adaptive attacker there")
    for row in rows:
        what = "{purifier}, {threat_model} {attack} {norm}".format(**row.result) + f" {eps_text(row.result['eps'])}"
        notes += [f"{what}: {warning}" for warning in row.warnings]
    if not Speed.of(settings.evaluation).is_exact:
        how = Speed.of(settings.evaluation)
        notes.append(f"attacks followed a fast double of the model ({how}); every verdict is the model's own, in fp32")
    if any(name.startswith(("pgd", "bim")) for name in settings.evaluation.attacks):
        notes.append("PGD and BIM step by eps/4 (2/255 at eps = 8/255); one try, the last iterate counts")
    if not any(is_autoattack(name) for name in settings.evaluation.attacks):
        notes.append("AutoAttack was not run; single gradient attacks overestimate robustness")
    return notes


def _has(rows: Sequence[Combination], threat: str) -> bool:
    return any(row.result["threat_model"] == threat for row in rows)


def _write_figures(
    folder: Path, rows: Sequence[Combination], curves: dict[str, list[dict[str, Any]]], judged: Sequence[Judged]
) -> None:
    save_figure(accuracy_figure(rows), folder / "accuracy.png")
    for one in judged:
        save_figure(checks_figure(one.checks), folder / f"checks-{one.name}.png")
    for name, lines in curves.items():
        save_figure(curve_figure(lines), folder / f"{name}.png")
    for row in headlines(rows):
        if row.samples:
            name = "samples-{purifier}-{threat_model}-{attack}-{norm}-{eps:.6g}.png".format(**row.result)
            save_figure(samples_figure(row.samples), folder / name)


def terminal_table(rows: Sequence[Combination]) -> Table:
    """Accuracies in percent of one threat model, one line a combination; fits 80 columns."""
    first = rows[0].result
    title = "{threat_model}: {dataset}, {classifier}; accuracy in %, [95 % interval]".format(**first)
    table = Table(title=title, title_style="bold", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("attack", "eps", "purifier"):
        table.add_column(name, no_wrap=True, vertical="bottom")
    for name in ("n", "alone\nclean/rob.", "purified\nclean", "purified\nrobust"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        result = row.result
        low, high = result["robust_ci95"]
        table.add_row(
            result["attack"].replace("autoattack-standard", "AutoAttack"),
            eps_text(result["eps"]) + (" L2" if result["norm"] == "L2" else ""),
            result["purifier"],
            str(result["n"]),
            f"{result['undefended_clean_accuracy']:.1f}/{result['undefended_robust_accuracy']:.1f}",
            f"{result['clean_accuracy']:.1f}",
            f"[bold]{result['robust_accuracy']:.1f}[/] \\[{low:.1f}, {high:.1f}]",
        )
    return table
