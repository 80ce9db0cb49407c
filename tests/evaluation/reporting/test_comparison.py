"""Reports are compared column by column, never across threat models, budgets or images, with a paired test."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from scipy.stats import binom

from maep.cli.compare import main
from maep.data.shards import ShardSet
from maep.evaluation import evaluate
from maep.evaluation.reporting.comparison import McNemar, mcnemar
from maep.models.purified import PurifiedClassifier
from maep.runtime.errors import UserError
from tests.evaluation.test_any_model import QUICK
from tests.small import Blur, digits, train_small, write_shards


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of a bare and a purified classifier on the same images, and one at another budget."""
    directory = tmp_path_factory.mktemp("runs")
    test: ShardSet = write_shards(directory / "test", 12)
    how = {**QUICK, "adaptive_images": 12, "threat_models": ["adaptive"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        evaluate(train_small(), test, name="net", run_dir=directory / "bare", **how)
        blurred = PurifiedClassifier(Blur(), train_small(kind="perceptron")).eval()
        evaluate(blurred, test, name="net", run_dir=directory / "blurred", **how)
        evaluate(train_small(), test, name="net", run_dir=directory / "other", **{**how, "eps": [0.05]})
    return directory


def _report(run: Path) -> dict[str, object]:
    return json.loads((run / "report.json").read_text())["results"][0]


def test_one_table_and_one_figure(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The column holds both rows with the reports' own numbers and the paired test on their records."""
    assert main([str(runs / "bare"), str(runs / "blurred"), "--out", str(tmp_path)]) == 0
    compared = json.loads((tmp_path / "compare.json").read_text())
    (column,) = compared["columns"]
    assert (column["threat_model"], column["attack"], column["eps"], column["n"]) == ("adaptive", "pgd-3", 0.1, 12)
    first, second = column["rows"]
    for row, name in ((first, "bare"), (second, "blurred")):
        assert row["robust_accuracy"] == _report(runs / name)["robust_accuracy"]
    assert first["mcnemar"] is None
    test = second["mcnemar"]
    right = first["robust_accuracy"] - second["robust_accuracy"]
    assert 100 * (test["only_first"] - test["only_second"]) / 12 == pytest.approx(right, abs=0.01)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert f"{second['robust_accuracy']:.1f}" in shown
    assert "p = " in shown


def test_different_budgets_are_refused(runs: Path, tmp_path: Path) -> None:
    """Runs that share no column are refused in one line that says what differs; nothing is written."""
    with pytest.raises(UserError, match=r"nothing to compare in one column: eps: 0.1 in .*bare; 0.05 in .*other"):
        main([str(runs / "bare"), str(runs / "other"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert main([str(runs / "bare"), str(runs / "other"), str(runs / "blurred"), "--out", str(tmp_path / "out")]) == 0
    compared = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [len(column["rows"]) for column in compared["columns"]] == [2]


def test_records_of_something_else_are_refused(runs: Path, tmp_path: Path) -> None:
    """A record that is not the report's, or missing, is named instead of tested."""
    (record,) = (runs / "bare" / "evaluation" / "none" / "adaptive" / "pgd-3-Linf-0.1").glob("chunk-0001.json")
    hidden = tmp_path / "hidden"
    record.rename(hidden)
    try:
        with pytest.raises(UserError, match="pgd-3-Linf-0.1: its records are not those of .*report.json"):
            main([str(runs / "bare"), str(runs / "blurred"), "--out", str(tmp_path / "out")])
    finally:
        hidden.rename(record)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "at least two"), (["a", "a"], "at least two"), (["a", "b"], "a/report.json: no such file"),
     (["a", "b", "--uot", "c"], "--uot: unknown argument")],
)  # fmt: skip
def test_bad_arguments(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than two runs, runs without a report and unknown options are one line."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_only_shared_images_are_compared(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run on other images, those that both have, by what they show; the table says how many."""
    images, labels = digits()
    order = torch.tensor([11, 3, 7, 20, 21])
    some = (images[order], labels[order])
    how = {**QUICK, "images": 5, "adaptive_images": 5, "threat_models": ["adaptive"]}
    evaluate(train_small(kind="perceptron"), some, name="net", run_dir=tmp_path / "some", **how)
    assert main([str(runs / "bare"), str(tmp_path / "some"), "--out", str(tmp_path / "out")]) == 0
    (column,) = json.loads((tmp_path / "out" / "compare.json").read_text())["columns"]
    assert (column["n"], [row["evaluated"] for row in column["rows"]]) == (3, [12, 5])
    folder = runs / "bare" / "evaluation" / "none" / "adaptive" / "pgd-3-Linf-0.1"
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("chunk-*.json"))]
    right = [p == label for each in records
             for p, label in zip(each["predictions"]["defended_adversarial"], each["labels"], strict=True)]  # fmt: skip
    expected = 100 * sum(right[index] for index in (3, 7, 11)) / 3
    assert column["rows"][0]["robust_accuracy"] == pytest.approx(expected, abs=1e-3)
    assert "the 3 images that all rows share, of 12 in" in " ".join(capsys.readouterr().out.split())
    others = (images[40:45], labels[40:45])
    evaluate(train_small(), others, name="net", run_dir=tmp_path / "others", **how)
    with pytest.raises(UserError, match="nothing to compare in one column: .*image set"):
        main([str(runs / "bare"), str(tmp_path / "others"), "--out", str(tmp_path / "none")])


def test_alarms_travel(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into the JSON and the table; of a report that did not list them, those of its findings."""
    for name in ("listed", "older"):
        shutil.copytree(runs / "blurred", tmp_path / name)
        path = tmp_path / name / "report.json"
        report = json.loads(path.read_text())
        finding = {"check": "square", "level": "alarm", "text": "it is masked"}
        report["honesty"]["Blur"]["findings"] = [finding]
        for row in report["results"]:
            row["alarms"] = ["square"]
            if name == "older":
                del row["alarms"]
        report.pop("sha256", None)
        path.write_text(json.dumps(report))
        assert main([str(runs / "bare"), str(tmp_path / name), "--out", str(tmp_path / "out")]) == 0
        (column,) = json.loads((tmp_path / "out" / "compare.json").read_text())["columns"]
        assert [row["alarms"] for row in column["rows"]] == [[], ["square"]]
        assert f"! {name}: net, Blur: alarms: square" in " ".join(capsys.readouterr().out.split())


def test_mcnemar() -> None:
    """The exact test is twice the binomial tail; no disagreement is no evidence; other images are no pair."""
    first = dict.fromkeys(range(20), True)
    second = {index: index >= 9 for index in first} | {20: False}
    first[20] = False
    assert mcnemar(first, second) == McNemar(9, 0, pytest.approx(2 * binom.cdf(0, 9, 0.5)))
    assert mcnemar(first, first).p == 1.0
    with pytest.raises(ValueError, match="same images"):
        mcnemar(first, {0: True})
