"""Every row of a README's table is in a committed report, number by number, and every such report in a README."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.results.committed import ABLATIONS, REPORTS, RESULTS, ROOT, flowing, table
from tests.suites import suite_line
from tests.tables import (
    DEFENSES,
    LINES,
    SHOWN,
    beside_their_like,
    defense_table,
    draws_line,
    result_lines,
    rows_with_draws,
    sweep_table,
    table_of,
)


def recovery_line(row: dict[str, Any]) -> str:
    """One row of the recovery table."""
    return (
        f"| {row['after']} | {row['seconds']:.1f} s | {row['until_all_ended']:.1f} s | {row['slurm_seconds']:.1f} s "
        f"| {row['start_seconds']:.1f} s | {row['most_steps_repeated']} | {row['samples_lost']} / "
        f"{row['samples_repeated']} |"
    )


def scaling_line(row: dict[str, Any]) -> str:
    """One row of the scaling table."""
    share = 100 * row["communication_share"]
    return f"| {row['processes']} | {row['images_per_second']:.0f} | {share:.0f} % |"


@pytest.mark.parametrize("path", [*REPORTS, *ABLATIONS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_reports_say_where_they_come_from(path: Path) -> None:
    """A committed report names command, commit and device, was made from a clean checkout, and has no local path."""
    environment = json.loads(path.read_text())["environment"]
    assert environment["command"]
    assert re.fullmatch("[0-9a-f]{40}", environment["commit"])
    assert environment["dirty"] is False
    assert environment["device"]
    assert not re.search(r"/(work|tmp|root|home)/", path.read_text())


def test_results_table_is_the_committed_reports() -> None:
    """The table and the reports hold the same AutoAttack and PGD rows, number by number."""
    assert sorted(table("results")) == sorted(result_lines())


def test_rows_of_the_results_stay_where_they_stood() -> None:
    """A new row comes after the last of its data and classifier, one that two reports have stands twice, and one that
    no report has any more goes.
    """
    digits, gone, cifar = ("| digits | small | 1 |", "| digits | small | 0 |", "| cifar10 | wide | 2 |")
    new, other = "| digits | small | 3 |", "| imagenet | deep | 4 |"
    lines = [other, cifar, new, digits, digits]
    assert beside_their_like(lines, [digits, gone, cifar]) == [digits, new, digits, cifar, other]


@pytest.mark.parametrize("name", LINES)
def test_benchmark_tables_are_the_committed_ones(name: str) -> None:
    """So are those of the benchmarks, as `python -m tests.tables` writes them, or nothing was recorded."""
    path = ROOT / "tests" / "reports" / f"{name}.json"
    if path.is_file():
        assert json.loads(path.read_text())["environment"]["dirty"] is False
    assert f"<!-- {name} -->\n{table_of(name)}<!-- /{name} -->\n" in RESULTS


@pytest.mark.parametrize(("name", "line"), [("recovery", recovery_line), ("scaling", scaling_line)])
def test_cluster_tables_are_the_committed_ones(name: str, line: Callable[[dict[str, Any]], str]) -> None:
    """So do what was measured on the Slurm of tests/cluster and its file, made from a clean checkout."""
    report = json.loads((ROOT / "tests" / "reports" / "cluster.json").read_text())
    assert report["environment"]["dirty"] is False
    assert table(name) == [line(row) for row in report[name]]


def test_ablation_tables_are_the_committed_ones() -> None:
    """So do the paper's tables at small scale; those of shared points, which were run too, are named."""
    shown = [path for path in ABLATIONS if path.stem.removeprefix("table") in SHOWN]
    assert f"<!-- ablation -->\n{sweep_table()}<!-- /ablation -->\n" in RESULTS
    tables = [path for path in ABLATIONS if path.stem.startswith("table")]
    others = [int(path.stem.removeprefix("table")) for path in tables if path not in shown]
    *first, last = map(str, others)
    assert f"Tables {', '.join(first)} and {last} were run too" in flowing(RESULTS)


@pytest.mark.parametrize("name", DEFENSES)
def test_tables_of_defenses_are_the_committed_ones(name: str) -> None:
    """So do the tables of defenses and of what they cost, as `python -m tests.tables` writes them."""
    assert f"<!-- {name} -->\n{defense_table(name)}<!-- /{name} -->\n" in RESULTS


def test_the_table_of_draws_is_the_committed_one() -> None:
    """So does that of random defenses; the worst of several draws is below their mean, of clean images too."""
    rows = rows_with_draws()
    assert table("draws") == [draws_line(row) for row in rows]
    for row in rows:
        for what in ("clean", "robust"):
            assert row[f"{what}_worst"] <= min(row[f"{what}_average"], row[f"{what}_majority"])


SUITES = ROOT / "tests" / "reports" / "suites.json"


def test_seconds_of_the_suites_are_the_recorded_ones() -> None:
    """What each folder of tests takes is what `python -m tests.suites` wrote down, or is not said."""
    rows = json.loads(SUITES.read_text())["rows"] if SUITES.is_file() else []
    assert table("suites") == [suite_line(row) for row in rows]
