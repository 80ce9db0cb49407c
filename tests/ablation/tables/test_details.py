"""The second table of a sweep: costs from the reports, claims from the file, our lowest beside them."""

from pathlib import Path
from typing import Any

import pytest

from maep.ablation.grid.points import Point, expand
from maep.ablation.grid.sweep import Claim, Sweep, read_sweep
from maep.ablation.running.point_records import PointRecord, PointState, write_record
from maep.ablation.tables.cells import read_cells
from maep.ablation.tables.details import columns_of, latex_details, markdown_details, read_details
from maep.ablation.tables.render import ours
from maep.ablation.tables.summary import write_summary
from maep.ablation.tables.summary_document import SUMMARY, SweepSummary
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json, write_json
from tests.ablation.sweeps import write
from tests.tiny import ROOT

CLAIMS = {"l1": {"claimed": 85.5, "found": 1.0, "by": "full gradients"}, "mse": {"by": "nobody"}}
READINGS = {
    "oblivious": {"attack": "pgd-2", "eps": "32/255"},
    "adaptive": {"attack": "pgd-2", "eps": "32/255", "threat_model": "adaptive"},
}


def study(directory: Path, **changes: Any) -> tuple[Sweep, list[Point]]:
    """Two points in a directory, of which nothing was run."""
    entries = {"costs": ["parameters", "seconds_per_image"], "claims": CLAIMS, "readings": READINGS, "paper": None}
    sweep = read_sweep(str(write(directory / "sweep.yaml", **{**entries, **changes})))
    words = ("evaluation.attacks=[pgd-2]", "evaluation.threat_models=[oblivious,adaptive]")
    return sweep, expand(sweep, [f"run.cache={directory}", *words])


def finish(point: Point, **changes: Any) -> None:
    """A report of two rows, against an attacker who does not know the defense and one who does."""
    common = {
        "purifier": "maep", "attack": "pgd-2", "eps": 32 / 255, "clean_accuracy": 98.0, "clean_ci95": [96, 99],
        "robust_ci95": [1, 2], "parameters": 1_567_299, "seconds_per_image": 0.01234,
    }  # fmt: skip
    attackers = (("oblivious", 80.0), ("adaptive", 12.5))
    rows = [{**common, "threat_model": name, "robust_accuracy": robust, **changes} for name, robust in attackers]
    point.directory.mkdir(parents=True)
    write_json(point.directory / "report.json", {"results": rows})
    write_record(point, PointRecord(PointState.FINISHED))


def test_costs_claims_and_the_lowest_accuracy_stand_in_a_row(tmp_path: Path) -> None:
    """Of a point that was run all of it, of one that was not its claims; older reports have no parameters."""
    sweep, (first, second) = study(tmp_path)
    finish(first)
    details = read_details(sweep, [first, second], read_cells(sweep, [first, second]))
    assert columns_of(details[0]) == ["1,567,299", "0.0123", "85.50", "1.00", "12.50", "full gradients"]
    assert columns_of(details[1]) == ["–", "–", "–", "–", "–", "nobody"]
    finish(second, parameters=None)
    details = read_details(sweep, [first, second], read_cells(sweep, [first, second]))
    assert columns_of(details[1])[:2] == ["–", "0.0123"]
    text = markdown_details(sweep, details)
    assert "| l1 | 1,567,299 | 0.0123 | 85.50 | 1.00 | 12.50 | full gradients |" in text
    assert "l1 & 1,567,299 & 0.0123 & 85.50 & 1.00 & 12.50 & full gradients" in latex_details(sweep, details)


def test_the_lowest_accuracy_says_of_how_many_images_it_is(tmp_path: Path) -> None:
    """Attackers are compared who attacked different numbers of them; of equal accuracies the one of more images."""
    sweep, points = study(tmp_path)
    for point, counts, accuracies in zip(points, ((1000, 32), (32, 1000)), ((80.0, 3.1), (0.0, 0.0)), strict=True):
        finish(point)
        path = point.directory / "report.json"
        rows = read_json(path)["results"]
        for row, n, robust in zip(rows, counts, accuracies, strict=True):
            row |= {"n": n, "robust_accuracy": robust}
        write_json(path, {"results": rows})
    cells = read_cells(sweep, points)
    assert [cell.measures[0].images for cell in cells] == [1000, 32, 32, 1000]
    details = read_details(sweep, points, cells)
    assert [(each.lowest, each.lowest_images) for each in details] == [(3.1, 32), (0.0, 1000)]
    assert [columns_of(each)[-2] for each in details] == ["3.10 (32 images)", "0.00 (1000 images)"]
    assert "3.10 (32 images)" in markdown_details(sweep, details)
    assert "3.10 (32 images)" in latex_details(sweep, details)
    summary = write_summary(sweep, points, tmp_path / "out", ["command"])
    assert SweepSummary.read(tmp_path / "out" / SUMMARY).details == summary.details == tuple(details)


def test_a_number_that_a_report_has_not_is_a_dash(tmp_path: Path) -> None:
    """Of a defense that draws nothing, beside one that does; of a worst case; none of it keeps the table from being."""
    readings = {**READINGS, "worst": {"eps": "32/255", "threat_model": "worst-case"}}
    values = ["robust_accuracy", "robust_worst", "energy_removed"]
    sweep, points = study(tmp_path, values=values, readings=readings, costs=["draws"])
    for point, draws in zip(points, ({"robust_worst": 4.0, "draws": 8}, {}), strict=True):
        finish(point, energy_removed=None, n=64, **draws)
        report = read_json(point.directory / "report.json")
        worst = {"maep": {"worst_case": [{"eps": 32 / 255, "n": 64, "robust_accuracy": 12.5}]}}
        write_json(point.directory / "report.json", {**report, "honesty": worst})
    cells = read_cells(sweep, points)
    assert [ours(cell).partition(" [")[0] for cell in cells if cell.reading != "worst"] == ["80.00", "12.50"] * 2
    assert [cell.measures[1].mean for cell in cells] == [4.0, 4.0, None, None, None, None]
    assert [ours(cell) for cell in cells if cell.reading == "worst"] == ["12.50 [6.5, 22.8] / – / –"] * 2
    assert [columns_of(each)[0] for each in read_details(sweep, points, cells)] == ["8", "–"]


def test_the_summary_holds_them_and_its_tables_show_them(tmp_path: Path) -> None:
    """Read as written; a sweep that names neither has no such entry and the table that it had."""
    for name, changes in (("with", {}), ("without", {"costs": ["parameters"], "claims": None})):
        (tmp_path / name).mkdir()
        sweep, points = study(tmp_path / name, **changes)
        for point in points:
            finish(point)
        summary = write_summary(sweep, points, tmp_path / name / "out", ["command"])
        assert SweepSummary.read(tmp_path / name / "out" / SUMMARY) == summary
        assert summary.details[0].claim == (Claim("full gradients", 85.5, 1.0) if name == "with" else None)
        assert "1,567,299" in (tmp_path / name / "out" / "table.md").read_text()
    tree = {"costs": None, "claims": None}
    sweep = read_sweep(str(write(tmp_path / "none.yaml", **{k: v for k, v in tree.items() if v}, paper=None)))
    assert read_details(sweep, [], []) == []
    assert markdown_details(sweep, []) == latex_details(sweep, []) == ""


def test_a_scale_adds_claims_of_its_own_rows(tmp_path: Path) -> None:
    """What stands in no row is refused, as are a cost that no report has and a claim with an unknown key."""
    scales = {"cpu": {"base": "digits", "grid": {"objective.distance": ["l1", "smooth_l1"]}}}
    added = {"cpu": {**scales["cpu"], "claims": {"smooth_l1": {"by": "us"}}}}
    sweep, _ = study(tmp_path, scales=added)
    assert sweep.claims[("smooth_l1",)] == Claim("us")
    assert ("l1",) in sweep.claims
    with pytest.raises(UserError, match=r"claims: huber: not in the grid, which has l1, mse"):
        study(tmp_path, claims={"huber": {"by": "us"}})
    with pytest.raises(UserError, match=r"claims\.l1: .*by"):
        study(tmp_path, claims={"l1": {"claimed": 3.0}})
    sweep, points = study(tmp_path, costs=["parametres"])
    finish(points[0])
    with pytest.raises(UserError, match=r"costs: parametres: not in a report; did you mean parameters\?"):
        read_details(sweep, points, [])


def test_the_committed_table_has_the_claims_of_its_file() -> None:
    """A figure that is changed in the file is shown once the table is written again, and not before."""
    for name in ("zoo", "zoo_generative"):
        sweep = read_sweep(f"ablation/{name}", "cpu")
        summary = SweepSummary.read(ROOT / f"tests/reports/ablation/{name}.json")
        assert {detail.names: detail.claim for detail in summary.details} == {
            detail.names: sweep.claims.get(detail.names) for detail in summary.details
        }
        assert all(cost.mean is not None for detail in summary.details for cost in detail.costs)
