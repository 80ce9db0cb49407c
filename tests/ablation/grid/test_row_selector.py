"""Which row of a report a reading means, and the worst case over all attackers as one."""

import json
from pathlib import Path

import pytest

from maep.ablation.grid.row_selector import WORST_CASE, RowSelector, row_of

REPORTS = Path(__file__).parents[2] / "reports"


def test_a_row_is_found_by_all_that_it_must_have() -> None:
    """Of the committed DiffPure on the digits: attacker, attack, budget and whether it was finetuned."""
    report = REPORTS / "diffpure_digits/report.json"
    row = row_of(report, RowSelector(attack="pgd-20", eps="32/255", threat_model="bpda"))
    assert row is not None
    assert (row["threat_model"], row["attack"], row["n"]) == ("bpda", "pgd-20", 32)
    for other in ({"attack": "fgsm"}, {"eps": "8/255"}, {"threat_model": "blackbox"}, {"purifier": "finetuned"}):
        how = {"attack": "pgd-20", "eps": "32/255", "threat_model": "bpda", **other}
        assert row_of(report, RowSelector(**how)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "eps", "meant", "other"),
    [("cifar10_cpu", "8/255", "finetuned", "pretrained"), ("diffpure_digits", "32/255", "pretrained", "finetuned")],
)
def test_the_final_purifier_is_the_finetuned_one_where_there_is_one(
    name: str, eps: str, meant: str, other: str
) -> None:
    """Else the pretrained one."""
    report = REPORTS / name / "report.json"
    rows = {
        purifier: row_of(report, RowSelector(purifier=purifier, attack="pgd-20", eps=eps))  # type: ignore[arg-type]
        for purifier in ("final", meant, other)
    }
    assert rows["final"] is not None
    assert rows["final"] == rows[meant] != rows[other]


def test_the_worst_case_is_what_stood_against_every_attacker() -> None:
    """No more than the lowest row leaves, on the images that all had, with Wilson's interval."""
    report = REPORTS / "diffpure_digits/report.json"
    row = row_of(report, RowSelector(eps="32/255", threat_model=WORST_CASE))
    results = json.loads(report.read_text())["results"]
    assert row is not None
    assert row["n"] == min(result["n"] for result in results) == 32
    assert row["robust_accuracy"] <= min(result["robust_accuracy"] for result in results if result["n"] == 32)
    assert {row["clean_accuracy"]} == {result["clean_accuracy"] for result in results if result["n"] == 32}
    assert row["clean_accuracy"] not in {result["clean_accuracy"] for result in results if result["n"] > 32}
    assert row["robust_ci95"][0] <= row["robust_accuracy"] <= row["robust_ci95"][1]
    assert row["robust_accuracy"] == pytest.approx(100 * round(row["robust_accuracy"] * 0.32) / 32)
    assert row_of(report, RowSelector(eps="8/255", threat_model=WORST_CASE)) is None
