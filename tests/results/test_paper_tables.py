"""What the results page says of the paper's tables at small scale is what the committed sweeps have."""

import json
from itertools import product
from pathlib import Path

import pytest

from maep.ablation.grid.sweep import read_sweep
from maep.config.load import sweep_names
from tests.results.committed import (
    ABLATIONS,
    BY_TWO,
    RESULTS,
    ROOT,
    WITH_CIFAR100,
    flowing,
    sweep_minutes,
)

PAPERS = {name.removeprefix("ablation/") for name in sweep_names() if read_sweep(name, "cpu").table}


@pytest.mark.parametrize("path", [path for path in ABLATIONS if path.stem in PAPERS], ids=lambda path: path.stem)
def test_a_table_is_the_one_that_was_run(path: Path) -> None:
    """A committed report of a table of the paper has the points that its file has today, and says the same of them."""
    report, sweep = json.loads(path.read_text()), read_sweep(f"ablation/{path.stem}", "cpu")
    assert report["note"] == sweep.note
    assert [axis["names"] for axis in report["axes"]] == [list(axis.names) for axis in sweep.axes]
    assert list(report["readings"]) == list(sweep.row_selectors)


def measured(table: str, measure: str = "robust_accuracy") -> dict[str, float]:
    """A measure of a committed table's cells, by their names."""
    cells = json.loads((ROOT / "tests" / "reports" / "ablation" / f"{table}.json").read_text())["cells"]
    by_name = {" · ".join([*cell["names"], cell["reading"]]).removesuffix(" · "): cell["measures"] for cell in cells}
    return {name: next(m["mean"] for m in measures if m["name"] == measure) for name, measures in by_name.items()}


def test_orderings_are_those_of_the_reports() -> None:
    """What the results page says of the paper's orderings is what the committed tables show."""
    grid = measured("table15")
    best = {p: max(("0", "0.25", "0.5", "0.75"), key=lambda r, p=p: grid[f"{p} · {r}"]) for p in "248"}
    assert best["2"] == "0.5"
    assert best["4"] != "0.25"  # the paper's
    assert best["8"] != "0.75"
    assert grid["2 · 0"] > grid["4 · 0"] > grid["8 · 0"]
    clean = measured("table15", "clean_accuracy")
    assert all(clean[f"{p} · 0"] > clean[f"{p} · 0.75"] + 15 for p in "248")
    assert f"where these reach {max(grid.values()):.0f} at most" in flowing(RESULTS)
    objectives = measured("table12")
    assert sorted(objectives, key=objectives.__getitem__)[-2:] == ["MAEP", "TRADES (pixel, Eq. 15)"]
    distances, cleans = measured("table11"), measured("table11", "clean_accuracy")
    assert distances["MSE"] > distances["L1"]
    assert cleans["MSE"] < cleans["L1"]
    tiles = measured("table08")
    for eps in ("4/255", "8/255"):
        assert tiles[f"trained on ImageNet · MAEP at {eps}"] > tiles[f"trained on CIFAR-10 · MAEP at {eps}"]
        assert {tiles[f"trained on {data} · MAEP with LoRA at {eps}"] for data in ("CIFAR-10", "ImageNet")} == {0}


def test_transfers_are_those_of_the_reports() -> None:
    """So are its sentences on CIFAR-100, and on the point that two machines have trained."""
    robust, clean, text = measured("table05"), measured("table05", "clean_accuracy"), flowing(RESULTS)
    assert clean["CIFAR-100 from CIFAR-10 · MAEP"] > clean["CIFAR-100 from CIFAR-100 · MAEP"]
    assert robust["CIFAR-100 from CIFAR-10 · MAEP"] < robust["CIFAR-100 from CIFAR-100 · MAEP"]
    assert robust["CIFAR-10 from CIFAR-100 · MAEP"] > robust["CIFAR-10 from CIFAR-10 · MAEP"]
    for data, other in product(("CIFAR-10", "CIFAR-100"), repeat=2):
        before, after = (f"{data} from {other} · MAEP{end}" for end in ("", " with LoRA"))
        assert clean[after] > clean[before] + 10
        assert robust[after] < robust[before] / 2
    for table, names in (("table02", "CIFAR-10"), ("table03", "CIFAR-100")):
        other = measured(table)
        assert {
            robust[f"{names} from {source} · MAEP"] == other[f"trained on {source}"]
            for source in ("CIFAR-10", "CIFAR-100")
        } == {True}
    for measure in ("clean_accuracy", "robust_accuracy"):
        both = measured("table14", measure)
        for name in (f"{data} from {other}" for data, other in product(("CIFAR-10", "CIFAR-100"), repeat=2)):
            assert abs(both[f"lora · {name}"] - both[f"full · {name}"]) < 1
    attacks, kept = measured("table07"), measured("table07", "clean_accuracy")
    assert attacks["AutoAttack, MAEP"] == robust["CIFAR-100 from CIFAR-100 · MAEP"]
    assert all(attacks[f"PGD, {name}"] < attacks[f"AutoAttack, {name}"] for name in ("MAEP", "MAEP with LoRA"))
    maep, lora = "AutoAttack, MAEP", "AutoAttack, MAEP with LoRA"
    sentence = f"MAEP keeps {kept[maep]:.1f} % of clean images, LoRA {kept[lora]:.1f} % with {attacks[lora]:.1f} %"
    assert f"{sentence} of the attacked" in text
    here = f"{clean['CIFAR-10 from CIFAR-10 · MAEP']:.1f} / {robust['CIFAR-10 from CIFAR-10 · MAEP']:.1f}"
    (there,) = {
        f"{measured(table, 'clean_accuracy')[name]:.1f} / {measured(table)[name]:.1f}"
        for table, name in (("table04", "MAEP"), ("table11", "L1"), ("table12", "MAEP"), ("table15", "4 · 0.5"))
    }
    assert f"MAEP with p = 4 and r = 0.5 has {here} in Table 5, and {there} in Tables 4, 11, 12 and 15" in text


def test_sweep_figures_are_those_of_the_reports() -> None:
    """Minutes, overhead and shared attacks that the results page gives."""
    text = flowing(RESULTS)
    reports = {path.stem: json.loads(path.read_text()) for path in ABLATIONS}
    for numbers, workers in ((BY_TWO, 2), (WITH_CIFAR100, 1)):
        assert {reports[f"table{number}"]["seconds"]["workers"] for number in numbers} == {workers}
    assert f"Tables 4, 11, 12 and 15 took {sweep_minutes(BY_TWO):.0f} minutes of two workers" in text
    cifar100 = f"Tables 2, 3, 5, 7, 13 and 14, with CIFAR-100, took {sweep_minutes(WITH_CIFAR100):.0f} minutes of one"
    assert cifar100 in text
    grid, single = reports["table15"], reports["table11"]
    assert f"is {grid['seconds']['overhead_percent']:.1f} % of its trainings" in text
    assert f"it is {single['seconds']['overhead_percent']:.0f} %" in text
    assert grid["attacked"]["training"]["sets"] == 1
    assert all(images["attacks"] == images["pieces"] for images in grid["attacked"].values())
    purification, maep = ("purification loss (Eq. 2)", "MAEP")
    for measure in ("distance_clean", "distance_adversarial"):
        values = measured("table04", measure)
        assert f"{values[purification]:.3f}" in RESULTS
        assert f"{values[maep]:.3f}" in RESULTS
