"""A defense that is no map from images to images is evaluated like any other, under every threat model."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maep.evaluation import evaluate
from maep.evaluation.answers import Autocast
from maep.evaluation.any_model import identities_of
from maep.models.defended import DefendedClassifier
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json
from tests.small import ATTACKERS, digits, train_small

QUICK: dict[str, Any] = {
    "images": 16, "adaptive_images": 16, "chunk_images": 8, "batch_size": 8, "attacks": ["pgd-5"], "eps": [0.1],
    "blackbox_attacks": ["square-50"], "figure_images": 2, "check_images": 4,
}  # fmt: skip


class ShiftAverage(DefendedClassifier):
    """Mean logits over an image and its shifts by some pixels in four directions: no image comes out of it."""

    def __init__(self, classifier: nn.Module, pixels: int) -> None:
        super().__init__(classifier)
        self.pixels = pixels

    def forward(self, images: Tensor) -> Tensor:
        shifts = [(0, 0), (0, self.pixels), (0, -self.pixels), (self.pixels, 0), (-self.pixels, 0)]
        return torch.stack([self.classifier(images.roll(shift, (2, 3))) for shift in shifts]).mean(0)


def shifted(pixels: int = 1) -> nn.Module:
    return ShiftAverage(train_small(), pixels).eval()


def data() -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[:16], labels[:16]


def test_is_evaluated_under_all_threat_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The undefended figures are the bare classifier's, the defended ones its own; the adaptive attack works."""
    monkeypatch.setattr("sys.argv", ["script.py"])  # the page shows the command, and is searched for words
    report = evaluate(shifted(), data(), name="small", run_dir=tmp_path, **QUICK, threat_models=list(ATTACKERS))
    rows = {row["threat_model"]: row for row in report["results"]}
    assert set(rows) == set(ATTACKERS)
    assert {row["purifier"] for row in rows.values()} == {"ShiftAverage"}
    (images, labels), defended = data(), shifted()
    for row in rows.values():
        assert row["clean_accuracy"] == percent(defended(images), labels)
        assert row["undefended_clean_accuracy"] == percent(train_small()(images), labels)
    assert rows["adaptive"]["robust_accuracy"] < rows["oblivious"]["robust_accuracy"]
    page = re.sub(r"data:image/[^\"]*", "", (tmp_path / "report.html").read_text())
    assert "Verdict: defense <code>ShiftAverage</code>" in page
    flat = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "defended robust %" in flat
    meanings = " ".join(re.findall(r'(?s)<div class="meaning">(.*?)</div>', page))
    assert meanings.count("<p>") == 2 * len(ATTACKERS)
    assert "purif" not in meanings
    assert "an attacker who knows the defense tests the defense" in flat
    assert "<li>ShiftAverage draws nothing at random" in page
    said = re.sub(r"(?s)<(style|script|pre)\b.*?</\1>", "", page)
    said = re.sub(r"(?s)<[^>]*?(title=\"[^\"]*\")?[^>]*>", r" \1 ", said)
    assert re.findall(r"(?i).{60}purif.{60}", " ".join(said.split())) == []
    findings = {finding["check"]: finding["text"] for finding in report["honesty"]["ShiftAverage"]["findings"]}
    assert "against attacks that follow the defense's approximation" in findings["bpda"]
    record = read_json(tmp_path / "evaluation/ShiftAverage/adaptive/pgd-5-Linf-0.1/chunk-0000.json")
    assert record["depends_on"]["purifier"] != record["depends_on"]["classifier"]


def percent(logits: Tensor, labels: Tensor) -> float:
    return round(100 * float((logits.argmax(1) == labels).double().mean()), 4)


def test_records_of_another_strength_are_not_taken_for_its_own(tmp_path: Path) -> None:
    """A number of the defense that is in no tensor and in no name is part of what it is."""
    strengths = [identities_of(shifted(pixels), "small", Autocast({})) for pixels in (1, 2, 1)]
    first, second, again = (purifier for purifier, _ in strengths)
    assert first == again != second
    assert len({classifier for _, classifier in strengths}) == 1
    threats = {**QUICK, "threat_models": ["oblivious"]}
    evaluate(shifted(1), data(), name="small", run_dir=tmp_path, **threats)
    with pytest.raises(UserError, match="was written for another purifier"):
        evaluate(shifted(2), data(), name="small", run_dir=tmp_path, **threats)
