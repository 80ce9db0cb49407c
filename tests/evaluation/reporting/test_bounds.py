"""The picture of what a purifier is worth: its bars against the rows they are of, and the plain baseline in words."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.evaluation.reporting.bounds import (
    Bound,
    Bounds,
    baseline_bounds,
    baseline_notes,
    bounds_figure,
    bounds_of,
    is_shown,
    read_baseline,
)
from maep.evaluation.reporting.figures import png_bytes
from maep.evaluation.reporting.report import build_report, read_results, write_environment
from maep.evaluation.reporting.report_document import Baseline, Report
from maep.evaluation.scoring.metrics import wilson_interval
from maep.runtime.errors import UserError
from tests.evaluation.certification.test_certifying import REPOSITORY
from tests.evaluation.small_evaluation import directory_of, run, settings_for
from tests.small import write_shards

REPORTS = REPOSITORY / "tests" / "reports"
PLAIN = REPORTS / "robust_digits_plain" / "report.json"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A small evaluation of a blur, its records on disk."""
    directory = tmp_path_factory.mktemp("bounds")
    settings = settings_for(directory, images=12, adaptive_images=6)
    run(settings, write_shards(directory / "test", 20))
    return settings


def test_bars_are_what_the_rows_say(evaluated: Settings) -> None:
    """Clean, the oblivious attacker's worst of its attacks, and everybody's together, on the images that all have."""
    results = read_results(evaluated, directory_of(evaluated).parent, {"pretrained": "blur"})
    [bounds] = bounds_of(results, ())
    rows = {threat: [row for row in results[0].rows if row.result.threat_model == threat]
            for threat in ("oblivious", "adaptive")}  # fmt: skip
    assert [bar.kind for bar in bounds.bars] == ["clean", "oblivious", "every attacker"]
    clean, oblivious, everybody = bounds.bars
    assert (clean.accuracy, clean.n) == (rows["oblivious"][0].result.clean_accuracy, 12)
    stood = [all(row.correct[i] for row in rows["oblivious"]) for i in range(12)]
    assert oblivious.accuracy == pytest.approx(100 * sum(stood) / 12, abs=1e-3)
    everyone = [all(row.correct[i] for part in rows.values() for row in part) for i in range(6)]
    assert (everybody.accuracy, everybody.n) == (pytest.approx(100 * sum(everyone) / 6, abs=1e-3), 6)
    low, high = wilson_interval(sum(everyone), 6)
    assert everybody.interval == pytest.approx((100 * low, 100 * high), abs=1e-3)
    assert everybody.accuracy <= 100 * sum(stood[:6]) / 6
    assert is_shown([bounds])
    unaware = Bounds("blur", bounds.bars[:2], bounds.image_set)
    assert not is_shown([unaware])
    assert len(png_bytes(bounds_figure([bounds, unaware]))) > 1000


def test_certificates_are_bars_of_their_purifier(evaluated: Settings) -> None:
    """Of the committed report: at radius 0.25 and 0.5, with their intervals, of the purifier of that name alone."""
    rows = Report.read(REPORTS / "certified_digits" / "report.json").certificates
    folder = directory_of(evaluated).parent
    for name in ("nim+full", "none", "blur"):
        [bounds] = bounds_of(read_results(evaluated, folder, {"pretrained": name}), rows)
        bars = [(bar.text, bar.accuracy, bar.interval, bar.n) for bar in bounds.bars if bar.kind == "certified"]
        assert bars == [
            (f"certified if smoothed, L2 {radius:g}, σ = 0.5", *row.at(radius), 30)
            for row in rows if row.purifier == name
            for radius in (0.25, 0.5)
        ]  # fmt: skip
        assert bool(bars) == (name != "blur")


def baseline(**changes: object) -> Baseline:
    settings = load_settings("robust/digits", [f"evaluation.baseline={PLAIN}"])
    read = read_baseline(settings)
    assert read is not None
    return replace(read, **changes)  # type: ignore[arg-type]


def test_the_baseline_is_a_classifier_under_its_strongest_attack() -> None:
    """Of the committed report of a classifier trained adversarially: AutoAttack on it, by run or by file."""
    rows = json.loads(PLAIN.read_text())["results"]
    strongest = min(row["undefended_robust_accuracy"] for row in rows)
    read = baseline()
    assert (read.robust_accuracy, read.n, read.classifier) == (strongest, 120, "cifar_resnet8")
    assert read.clean_accuracy == rows[0]["undefended_clean_accuracy"]
    assert read == read_baseline(load_settings("robust/digits", [f"evaluation.baseline={PLAIN.parent}"]))
    assert read_baseline(load_settings("robust/digits")) is None
    assert [bar.kind for bar in baseline_bounds(read).bars] == ["clean", "every attacker"]
    for words, message in (
        ([f"evaluation.baseline={PLAIN.parent}/nothing"], "no such run or report.json"),
        ([f"evaluation.baseline={PLAIN}", "evaluation.eps=[8/255]"], "was not attacked within Linf 8/255"),
        ([f"evaluation.baseline={PLAIN}", "evaluation.norm=L2", "evaluation.eps=[1]"], "was not attacked within L2"),
    ):
        with pytest.raises(UserError, match=message):
            read_baseline(load_settings("robust/digits", words))


@pytest.mark.parametrize(
    ("accuracy", "interval", "words"),
    [
        (50.0, (41.0, 59.0), "P does worse than its plain baseline: against whoever knows all, 50.0 % stand of it"),
        (80.0, (72.0, 86.0), "P does worse than its plain baseline: .*; their intervals overlap"),
        (95.0, (92.0, 98.0), "P does better than its plain baseline: .*without a purifier$"),
    ],
)  # fmt: skip
def test_it_is_said_in_words(accuracy: float, interval: tuple[float, float], words: str) -> None:
    """Worse, better, and whether the intervals tell; on other images that is said as well."""
    plain = baseline()
    bounds = Bounds("P", (Bound("every attacker", "", accuracy, interval, 120),), plain.image_set)
    [note] = baseline_notes([bounds], plain)
    assert re.match(words, note)
    [elsewhere] = baseline_notes([replace(bounds, image_set="others")], plain)
    assert "plain baseline, on other images: " in elsewhere
    assert list(baseline_notes([bounds], None)) == []
    assert list(baseline_notes([replace(bounds, name="none"), replace(bounds, bars=())], plain)) == []


def test_the_report_shows_it(evaluated: Settings, tmp_path: Path) -> None:
    """figures/bounds.png, on the page, and in report.json with its baseline; without one as before."""
    directory = Path(evaluated.run.dir)
    write_environment(directory, ["maep"])
    plain = build_report(evaluated, directory, {"pretrained": "blur"})
    assert "baseline" not in plain.to_json()
    assert (directory / "figures" / "bounds.png").stat().st_size > 1000
    entries = json.loads(PLAIN.read_text())
    for row in entries["results"]:
        row["eps"] = 0.1
    (tmp_path / "report.json").write_text(json.dumps(entries))
    evaluated.evaluation.baseline = str(tmp_path)
    report = build_report(evaluated, directory, {"pretrained": "blur"})
    evaluated.evaluation.baseline = None
    assert report.baseline is not None
    assert Report.read(directory / "report.json").baseline == report.baseline
    page = (directory / "report.html").read_text()
    assert "What it is worth" in page
    assert "worse than its plain baseline, on other images" in page
