"""The honesty checks pass an honest defense and catch real ones that hide their gradients."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maep.config.published_classifiers import NONE, PublishedClassifier
from maep.data.shards import ShardSet
from maep.evaluation.audit.findings import ALARM, PASSED, WARNING, PurifierResult, findings, worst_case
from maep.evaluation.audit.gradient_masking import finite_differences, margin_gradients, margins, median_error
from maep.evaluation.reporting.report import honest_notes, read_results
from maep.evaluation.reporting.rows import Combination
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.workers import evaluate_all
from tests.evaluation.defenses import FalseGradient, Jpeg, Noise, Rounding
from tests.evaluation.small_evaluation import directory_of, settings_for
from tests.small import Blur, digits, train_small, write_shards

QUICK: dict[str, Any] = {
    "images": 16, "adaptive_images": 16, "chunk_images": 16, "batch_size": 16, "attacks": ["pgd-10"], "eps": [0.15],
    "threat_models": ["oblivious", "bpda", "adaptive", "blackbox"], "blackbox_attacks": ["square-300"],
    "check_images": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("shards") / "test", 16)


def evaluated(directory: Path, test: ShardSet, purifier: nn.Module, **how: Any) -> PurifierResult:
    """A real evaluation of the small classifier behind a purifier."""
    settings = settings_for(directory, **{**QUICK, **how})
    defense = Defense(purifier, train_small(), "it", "small")
    evaluation = Evaluation(settings, defense, test, directory_of(settings))
    assert evaluate_all([evaluation])
    return read_results(settings, Path(settings.run.dir) / "evaluation")[0]


def alarms(result: PurifierResult) -> set[str]:
    return {finding.check for finding in result.findings if finding.level == ALARM}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, test_set: ShardSet) -> PurifierResult:
    return evaluated(tmp_path_factory.mktemp("honest"), test_set, Blur())


def test_an_honest_defense_passes(honest: PurifierResult) -> None:
    """A purifier with true gradients sets off no alarm; the loss rises and the large budget is enough."""
    assert alarms(honest) == set()
    checks = ["randomness", "gradients", "finite differences", "loss against eps", "loss against steps"]
    checks += ["large budget", "planted", "transfer", "bpda", "square", "8-bit budget", "8-bit accuracy"]
    assert {finding.check for finding in honest.findings} == set(checks)


def test_a_published_classifier_must_be_as_accurate_as_it_is_said_to_be(
    honest: PurifierResult, tmp_path: Path, test_set: ShardSet
) -> None:
    """By the row of most images: of all 10,000 within 0.3 points, of fewer as a sample of those may be; a run that
    names its classifier's identifier says so, and one that does not has no such line."""

    def level(published: float, right: float, images: int) -> str:
        few, many = ((100.0, 16), (right, images))
        rows = [
            replace(row, result=replace(row.result, undefended_clean_accuracy=percent, n=n))
            for row in honest.rows[:1] for percent, n in (few, many)
        ]  # fmt: skip
        known = PublishedClassifier("wrn28_10", NONE, published, 0.0)
        levels = [
            finding.level
            for finding in replace(honest, rows=rows, published=known).findings
            if finding.check == "published accuracy"
        ]
        return levels[0]

    assert level(94.78, 94.5, 10_000) == level(94.78, 95.05, 10_000) == PASSED
    assert level(94.78, 94.45, 10_000) == level(94.78, 95.1, 10_000) == ALARM
    # A deviation of 1000 of the 10,000 is 0.949 of √(p(1 - p)/1000), 0.703 points; 3.3 of them and 0.3 are 2.51.
    assert level(94.78, 92.4, 1000) == PASSED
    assert level(94.78, 92.2, 1000) == ALARM
    assert level(93.3, 73.7, 100) == ALARM
    quick = {**QUICK, "threat_models": ["oblivious"], "attacks": ["pgd-1"], "check_images": 2}
    evaluated(tmp_path, test_set, Blur(), **quick)
    settings = settings_for(tmp_path, **quick)
    settings.classifier.robustbench = "cifar10/Standard"
    (result,) = read_results(settings, Path(settings.run.dir) / "evaluation")
    (text,) = [finding.text for finding in result.findings if finding.check == "published accuracy"]
    assert text.endswith("of 16 clean images, 94.78 % are published")


@pytest.mark.parametrize("purifier", [Rounding(), Jpeg()], ids=["8-bit rounding", "JPEG"])
def test_masked_gradients_are_caught(tmp_path: Path, test_set: ShardSet, purifier: nn.Module) -> None:
    """8-bit rounding and JPEG: the gradient is missing, and attackers who know less do better than the adaptive one."""
    result = evaluated(tmp_path, test_set, purifier)
    assert {"gradients", "transfer", "bpda", "square", "large budget", "planted"} <= alarms(result)
    rows = {row.result.threat_model: row.result.robust_accuracy for row in result.rows}
    assert rows["adaptive"] > 80, "this is the number that would have been believed"
    assert rows["bpda"] < 20
    assert [case.robust_accuracy for case in result.honesty().worst_case] <= [rows["bpda"]]


def test_false_gradients_are_caught(tmp_path: Path, test_set: ShardSet) -> None:
    """A backward pass that is not the forward one's disagrees with finite differences."""
    assert "finite differences" in alarms(evaluated(tmp_path, test_set, FalseGradient(), threat_models=["adaptive"]))


def test_randomness_is_caught(tmp_path: Path, test_set: ShardSet) -> None:
    """A random defense is one to average over: without EOT it is an alarm, with it the scores of its draws are told."""
    how = {"attacks": ["pgd-3"], "images": 4, "draws": 3, "check_images": 2}
    without = evaluated(tmp_path / "without", test_set, Noise(), threat_models=["adaptive"], **how)
    assert "randomness" in alarms(without)
    again = evaluated(tmp_path / "again", test_set, Noise(), threat_models=["adaptive"], **how)
    assert [row.correct for row in again.rows] == [row.correct for row in without.rows], "random, yet repeatable"
    averaged = evaluated(tmp_path / "with", test_set, Noise(), threat_models=["adaptive", "adaptive-eot"], **how)
    assert "randomness" not in alarms(averaged)
    for row in averaged.rows:
        result = row.result
        assert result.draws == 3
        assert None not in (result.robust_worst, result.robust_average, result.robust_majority)
        assert result.robust_worst <= result.robust_average  # type: ignore[operator]
        assert result.robust_worst <= result.robust_majority  # type: ignore[operator]


def test_rounding_out_of_the_budget_is_told(honest: PurifierResult) -> None:
    """Stored images that use more than the budget, or that attack less, are told with their numbers."""
    result = replace(honest.rows[0].result, eps_used_8bit=0.1529, robust_accuracy=10.0, robust_accuracy_8bit=30.0)
    outcomes = findings(honest.checks, [replace(honest.rows[0], result=result)], 10)
    warnings = {finding.check: finding for finding in outcomes if finding.level == "warning"}
    assert "0.1529 of ε = 0.15" in warnings["8-bit budget"].text
    assert "+20.0 points" in warnings["8-bit accuracy"].text
    assert not any(finding.level == "warning" for finding in honest.findings)


def test_an_image_of_few_is_no_warning(honest: PurifierResult) -> None:
    """A point more or less is measured by the images of its own row, not by those of another attacker's."""
    few, many = (replace(honest.rows[0], result=replace(honest.rows[0].result, n=n)) for n in (16, 1000))
    moved = replace(few.result, robust_accuracy=50.0, robust_accuracy_8bit=56.25)
    for rows, expected in (([many, replace(few, result=moved)], "passed"), ([replace(few, result=moved)], "passed"),
                           ([few, replace(many, result=replace(moved, n=1000))], "warning")):  # fmt: skip
        (told,) = [each for each in findings(honest.checks, rows, 10) if each.check == "8-bit accuracy"]
        assert (told.level, "+6.2 points" in told.text) == (expected, True)


@pytest.mark.parametrize(
    ("attacks", "told"),
    [
        ({"oblivious": "pgd-10", "adaptive": "autoattack-standard"}, ""),
        ({"oblivious": "autoattack-standard", "adaptive": "pgd-10"}, "AutoAttack was run on the classifier alone"),
        ({"oblivious": "pgd-10", "adaptive": "fgsm"}, "AutoAttack was not run"),
        ({"oblivious": "autoattack-standard"}, ""),
    ],
)
def test_whether_autoattack_was_run_is_told_of_what_was_run(
    honest: PurifierResult, tmp_path: Path, attacks: dict[str, str], told: str
) -> None:
    """By whichever attacker, and not of what the settings name for attackers that were left out."""
    row = honest.rows[0]
    rows = [replace(row, result=replace(row.result, threat_model=name, attack=at)) for name, at in attacks.items()]
    notes = honest_notes(settings_for(tmp_path, attacks=["fgsm"]), [replace(honest, rows=rows)])
    assert [note.partition(";")[0] for note in notes if note.startswith("AutoAttack")] == [told] * bool(told)


def test_purified_images_that_are_none_are_told(honest: PurifierResult) -> None:
    """What a purifier makes for its own classifier alone is told with its likeness, of the row with the most images."""
    few, most = honest.rows[0], replace(honest.rows[0].result, n=17, ssim_clean=0.02, psnr_clean=9.1)
    outcomes = findings(honest.checks, [few, replace(few, result=most)], 10)
    (told,) = [finding for finding in outcomes if finding.level == "warning"]
    assert told.check == "purified images"
    assert "SSIM 0.02, 9.1 dB in the mean of 17" in told.text


def test_falling_loss_is_caught(honest: PurifierResult) -> None:
    """A loss that falls with the budget or does not rise with the steps is an alarm."""
    falling = [replace(point, loss=9.0 - number) for number, point in enumerate(honest.checks.against_eps)]
    falling[1] = replace(falling[1], accuracy=50.0)
    flat = tuple(replace(point, loss=1.0) for point in honest.checks.against_steps)
    checks = replace(honest.checks, against_eps=tuple(falling), against_steps=flat)
    changed = replace(honest, checks=checks)
    assert alarms(changed) == {"loss against eps", "loss against steps"}
    assert changed.findings[0].level == ALARM, "alarms come first"
    broken = (replace(point, accuracy=0.0) for point in falling[1:])
    checks = replace(honest.checks, against_eps=(replace(falling[0], loss=0.1), *broken))
    changed = replace(honest, checks=checks)
    assert alarms(changed) == set(), "no image stands any more: how wrongly they are classified says nothing"


def test_transfer_is_compared_image_by_image(honest: PurifierResult) -> None:
    """The weaker attacker counts on the adaptive one's images alone, all its attacks together."""
    by_threat = {row.result.threat_model: row for row in honest.rows}
    adaptive, oblivious = by_threat["adaptive"], by_threat["oblivious"]
    stands = replace(adaptive, correct={0: True, 1: False})
    other = replace(oblivious, correct={0: False, 1: True, 2: True, 3: True})
    outcomes = findings(honest.checks, [stands, other], 10)
    (transfer,) = [finding for finding in outcomes if finding.check == "transfer"]
    assert "50.0 % stand against attacks that know only the classifier and 50.0 %" in transfer.text
    assert transfer.level != ALARM
    both = findings(honest.checks, [stands, other, replace(oblivious, correct={0: True, 1: False})], 10)
    assert next(finding for finding in both if finding.check == "transfer").level == ALARM


@pytest.mark.parametrize(("threat", "level"), [("adaptive", ALARM), ("oblivious", WARNING)])
def test_a_smaller_budget_that_leaves_fewer_images_is_told(honest: PurifierResult, threat: str, level: str) -> None:
    """Of the images that both have, beyond what luck is; of an attacker who knows the purifier it is an alarm. The
    worst case of the larger budget is what stood within both.
    """
    (row,) = [row for row in honest.rows if row.result.threat_model == threat]

    def of(eps: float, stand: int, attack: str = "pgd-10") -> Combination:
        """Of 100 images the first so many stand."""
        correct = {index: index < stand for index in range(100)}
        return replace(row, correct=correct, result=replace(row.result, eps=eps, attack=attack, n=100))

    def told(*rows: Combination) -> list[tuple[str, str]]:
        outcomes = findings(honest.checks, rows, 10)
        return [(finding.level, finding.text) for finding in outcomes if finding.check == "smaller budget"]

    ((found, text),) = told(of(8 / 255, 70), of(4 / 255, 50), of(2 / 255, 60))
    assert found == level
    assert "50.0 % stand within ε = 4/255 and 70.0 % within 8/255, of the same 100 images" in text
    assert told(of(4 / 255, 50), of(8 / 255, 52))[0][0] == PASSED
    assert told(of(4 / 255, 50), of(8 / 255, 53))[0][0] == level
    assert told(of(4 / 255, 50), of(8 / 255, 70, "fgsm")) == []
    rows = [of(8 / 255, 70), of(4 / 255, 50), of(2 / 255, 60)]
    assert [(round(255 * case.eps), case.robust_accuracy) for case in worst_case(rows)] == [(8, 50), (4, 50), (2, 60)]


def test_margin_and_its_differences() -> None:
    """The margin is the best other logit minus the label's; its differences are those of a linear model exactly."""
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 1.0]])
    assert margins(nn.Identity(), logits, torch.tensor([1, 1])).tolist() == [-3.0, 4.0]
    images, labels = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    assert median_error(list(finite_differences(linear, images[:4], labels[:4], 0))) < 0.01
    assert not margin_gradients(nn.Sequential(Jpeg(), linear), images[:2], labels[:2]).any()


def test_differences_of_a_curved_margin() -> None:
    """The margin of a large image bends within a thousandth of a pixel's range; shorter steps follow it."""

    class Curved(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            total = images.flatten(1).sum(1)
            return torch.stack([torch.zeros_like(total), torch.sin(total)], dim=1)

    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 100
    assert median_error(list(finite_differences(Curved(), images, torch.tensor([0, 1]), 0))) < 0.01
