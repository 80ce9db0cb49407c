"""Every figure in the README's tables is in a committed report, and every such report is in the README."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maep.evaluation.scoring.plan import eps_text

ROOT = Path(__file__).resolve().parents[1]
REPORTS = sorted((ROOT / "tests" / "reports").glob("*/report.json"))
ABLATIONS = sorted((ROOT / "tests" / "reports" / "ablation").glob("*.json"))
SHOWN = ("04", "05", "08", "11", "12", "15")  # tables of the paper whose points are their own
README = (ROOT / "README.md").read_text()


def result_line(result: dict[str, Any]) -> str:
    """One row of the results table."""
    clean, robust = result["clean_accuracy"], result["robust_accuracy"]
    return (
        f"| {result['dataset']} | {result['classifier']} | {result['purifier']} | {result['threat_model']} "
        f"| {result['attack']} | {eps_text(result['eps'])} | {result['n']} "
        f"| {result['undefended_clean_accuracy']:.1f} / {result['undefended_robust_accuracy']:.1f} "
        f"| {clean:.1f} [{result['clean_ci95'][0]:.1f}, {result['clean_ci95'][1]:.1f}] "
        f"| {robust:.1f} [{result['robust_ci95'][0]:.1f}, {result['robust_ci95'][1]:.1f}] |"
    )


def bench_line(row: dict[str, Any]) -> str:
    """One row of the benchmark table."""
    return f"| {row['name']} | {row['rate']:.1f} {row['unit']} | {row['limit']} | {row['ratio']:.2f} |"


def evaluation_bench_line(row: dict[str, Any]) -> str:
    """One row of the evaluation's benchmark table."""
    return f"| {row['name']} | {row['what']} | {row['ratio']:.3g} | {row['wanted']} |"


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


def ablation_lines(path: Path) -> list[str]:
    """The rows of one table of the paper: a line a cell, accuracies with their intervals."""
    report, lines = json.loads(path.read_text()), []
    for cell in report["cells"]:
        names = " · ".join([*cell["names"], *([cell["reading"]] if cell["reading"] else [])])
        ours, papers = [], []
        for one in cell["measures"]:
            interval = one["interval"]
            spread = f"{one['mean']:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else f"{one['mean']:.3g}"
            ours.append(spread)
            papers.append("–" if one["paper"] is None else f"{one['paper']:.4g}")
        told = [" / ".join(words) for words in (report["values"], ours, papers)]
        lines.append(f"| {report['table'].removeprefix('Table ')} | {names} | {' | '.join(told).replace('_', ' ')} |")
    return lines


def table(name: str) -> list[str]:
    """The rows between two markers of the README, without head and rule."""
    text = re.search(f"<!-- {name} -->(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert text, f"README lacks the markers of {name}"
    return [line for line in text[1].splitlines() if line.startswith("| ")][1:]


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
    expected = [
        result_line(result)
        for path in REPORTS
        for result in json.loads(path.read_text())["results"]
        if result["attack"] != "fgsm"
    ]
    assert sorted(table("results")) == sorted(expected)


@pytest.mark.parametrize(("name", "line"), [("bench", bench_line), ("evaluation_bench", evaluation_bench_line)])
def test_benchmark_tables_are_the_committed_ones(name: str, line: Callable[[dict[str, Any]], str]) -> None:
    """So do the benchmarks' tables and their files."""
    report = json.loads((ROOT / "tests" / "reports" / f"{name}.json").read_text())
    assert report["environment"]["dirty"] is False
    assert table(name) == [line(row) for row in report["rows"]]


@pytest.mark.parametrize(("name", "line"), [("recovery", recovery_line), ("scaling", scaling_line)])
def test_cluster_tables_are_the_committed_ones(name: str, line: Callable[[dict[str, Any]], str]) -> None:
    """So do what was measured on the Slurm of tests/cluster and its file, made from a clean checkout."""
    report = json.loads((ROOT / "tests" / "reports" / "cluster.json").read_text())
    assert report["environment"]["dirty"] is False
    assert table(name) == [line(row) for row in report[name]]


def test_ablation_tables_are_the_committed_ones() -> None:
    """So do the paper's tables at small scale; those of shared points, which were run too, are named."""
    shown = [path for path in ABLATIONS if path.stem.removeprefix("table") in SHOWN]
    assert table("ablation") == [line for path in shown for line in ablation_lines(path)]
    others = [int(path.stem.removeprefix("table")) for path in ABLATIONS if path not in shown]
    *first, last = map(str, others)
    assert f"Tables {', '.join(first)} and {last} were run too" in README.replace("\n", " ")


@pytest.mark.parametrize("name", ["cifar10_cpu", "digits"])
def test_durations_are_the_recorded_ones(name: str) -> None:
    """The minutes that the README gives are the sum of the run's stages."""
    seconds = json.loads((ROOT / "tests" / "reports" / name / "seconds.json").read_text())
    assert seconds["total"] == pytest.approx(sum(seconds["stages"].values()), abs=0.1)
    assert f"`cfg={name}` took {seconds['total'] / 60:.0f} minutes" in README


@pytest.mark.parametrize(("name", "alarms"), [("alone", set()), ("rounding", {"gradients", "square"}),
                                              ("jpeg", {"gradients", "square"})])  # fmt: skip
def test_masked_gradients_were_caught(name: str, alarms: set[str]) -> None:
    """The committed reports say which is which: a classifier alone, and behind defences that mask gradients."""
    report = json.loads((ROOT / "tests" / "reports" / f"masking_{name}" / "report.json").read_text())
    found = {one["check"] for one in report["honesty"]["none"]["findings"] if one["level"] == "alarm"}
    assert alarms <= found
    assert bool(alarms) == bool(found)


def measured(table: str, measure: str = "robust_accuracy") -> dict[str, float]:
    """A measure of a committed table's cells, by their names."""
    cells = json.loads((ROOT / "tests" / "reports" / "ablation" / f"{table}.json").read_text())["cells"]
    named = {" · ".join([*cell["names"], cell["reading"]]).removesuffix(" · "): cell["measures"] for cell in cells}
    return {name: next(one["mean"] for one in cell if one["name"] == measure) for name, cell in named.items()}


def test_orderings_are_those_of_the_reports() -> None:
    """What the README says of the paper's orderings is what the committed tables show."""
    grid = measured("table15")
    best = {p: max(("0", "0.25", "0.5", "0.75"), key=lambda r, p=p: grid[f"{p} · {r}"]) for p in "248"}
    assert best["2"] == "0.5"
    assert best["4"] != "0.25"  # the paper's
    assert best["8"] != "0.75"
    assert grid["2 · 0"] > grid["4 · 0"] > grid["8 · 0"]
    clean = measured("table15", "clean_accuracy")
    assert all(clean[f"{p} · 0"] > clean[f"{p} · 0.75"] + 15 for p in "248")
    assert f"where these reach {max(grid.values()):.0f} at most" in README
    objectives = measured("table12")
    assert sorted(objectives, key=objectives.__getitem__)[-2:] == ["MAEP", "TRADES (pixel, Eq. 15)"]
    distances, cleans = measured("table11"), measured("table11", "clean_accuracy")
    assert distances["MSE"] > distances["L1"]
    assert cleans["MSE"] < cleans["L1"]
    tiles = measured("table08")
    for eps in ("4/255", "8/255"):
        assert tiles[f"trained on ImageNet · MAEP at {eps}"] > tiles[f"trained on CIFAR-10 · MAEP at {eps}"]
        assert {tiles[f"trained on {data} · MAEP with LoRA at {eps}"] for data in ("CIFAR-10", "ImageNet")} == {0}
    moved = measured("table05")
    for data, other in (("CIFAR-10", "digits"), ("digits", "CIFAR-10")):
        assert moved[f"{data} from {other} · MAEP"] < moved[f"{data} from {data} · MAEP"]
        assert moved[f"{data} from {other} · MAEP with LoRA"] < moved[f"{data} from {other} · MAEP"]


def test_sweep_figures_are_those_of_the_reports() -> None:
    """Minutes, overhead and shared attacks that the README gives."""
    found = {path.stem: json.loads(path.read_text()) for path in ABLATIONS}
    shared = [found[f"table{number}"]["seconds"] for number in SHOWN if number != "08"]
    minutes = sum(seconds["sweep"] for seconds in shared) / 2 / 60
    assert f"Without Table 8 they took {minutes:.0f} minutes of two workers" in README
    assert {seconds["workers"] for seconds in shared} == {2}
    grid, single = found["table15"], found["table11"]
    assert f"is {grid['seconds']['overhead_percent']:.1f} % of its trainings" in README.replace("\n", " ")
    assert f"it is {single['seconds']['overhead_percent']:.0f} %" in README
    assert grid["attacked"]["training"]["sets"] == 1
    assert all(made["attacks"] == made["pieces"] for made in grid["attacked"].values())
    purification, maep = ("purification loss (Eq. 2)", "MAEP")
    for measure in ("distance_clean", "distance_adversarial"):
        values = measured("table04", measure)
        assert f"{values[purification]:.3f}" in README
        assert f"{values[maep]:.3f}" in README


def test_cross_check_is_as_told() -> None:
    """On two nets and under two seeds each, every image is pyautoattack's, and no attack had nothing to do."""
    reports = [json.loads(path.read_text()) for path in sorted((ROOT / "tests/reports/cross_check").glob("*.json"))]
    assert [report["classifier"] for report in reports] == ["cifar_resnet20", "wrn28_1"]
    rows = [row for report in reports for row in report["rows"]]
    assert [row["seed"] for row in rows] == [0, 1, 0, 1]
    assert all(report["environment"]["dirty"] is False for report in reports)
    assert all(row["standing"]["fab-t"] > 0 for row in rows), "Square had nothing to do"
    count = sum(row["n"] for row in rows)
    for what in ("equal_images", "equal_answers"):
        assert f"{sum(row[what] for row in rows)} of {count} images" in README


def test_imagenet_sentence_is_the_report() -> None:
    """What the text says of ImageNet transfer is what the report has."""
    results = json.loads((ROOT / "tests/reports/imagenet_transfer/report.json").read_text())["results"]
    small, large = (result for result in results if result["threat_model"] == "oblivious")
    text = README.replace("\n", " ")
    assert f"On ImageNet ({small['n']:,} images, by tiles)" in text
    told = f"{small['robust_accuracy']:.1f} % of the attacked images at 4/255 and {large['robust_accuracy']:.1f} %"
    assert f"{told} at 8/255" in text
