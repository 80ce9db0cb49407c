"""Any model can be evaluated, from Python and by `maep evaluate`; what was handed over wrongly is named in one line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maep import PurifiedClassifier
from maep.cli.evaluate import main
from maep.data.shards import ShardSet
from maep.evaluation import evaluate
from maep.models.classifiers import Normalized
from maep.runtime.errors import UserError
from tests.small import Blur, digits, train_small, write_shards

QUICK: dict[str, Any] = {
    "images": 12, "adaptive_images": 6, "chunk_images": 6, "batch_size": 6, "attacks": ["pgd-3"], "eps": [0.1],
    "blackbox_attacks": ["square-20"], "check_images": 2, "figure_images": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("shards") / "test", 64)


class Rescaled(nn.Module):
    """The small classifier as one that was trained on images of another scale: it sees images * factor + offset."""

    def __init__(self, factor: float, offset: float) -> None:
        super().__init__()
        self.classifier, self.factor, self.offset = train_small(), factor, offset

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images * self.factor + self.offset)


def normalized(model: nn.Module) -> nn.Module:
    return Normalized(model, [-2.0] * 3, [1.0] * 3)


def test_a_classifier_without_a_purifier(tmp_path: Path, test_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare module is attacked as it is, once for all threat models that come to the same; the report says so."""
    monkeypatch.chdir(tmp_path)
    report = evaluate(train_small(), test_set, name="net", run_dir=tmp_path / "run", **QUICK)
    rows = {row["threat_model"]: row for row in report["results"]}
    assert set(rows) == {"adaptive", "adaptive-eot", "blackbox"}
    for row in rows.values():
        assert (row["classifier"], row["purifier"], row["dataset"], row["n"]) == ("net", "none", "digits", 12)
        assert row["robust_accuracy"] == row["undefended_robust_accuracy"]
    assert rows["adaptive"]["robust_accuracy"] == rows["adaptive-eot"]["robust_accuracy"]
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
    assert not (tmp_path / "run" / "robustbench.json").exists(), "AutoAttack was not run"


def test_a_defense_has_every_threat_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PurifiedClassifier is taken apart, here on tensors, with AutoAttack: RobustBench's entry is written."""
    monkeypatch.chdir(tmp_path)
    images, labels = digits()
    monkeypatch.setitem(QUICK, "attacks", ["autoattack-standard"])
    how = {**QUICK, "images": 4, "adaptive_images": 4, "eps": [0.3]}
    model = PurifiedClassifier(Blur(), train_small()).eval()
    report = evaluate(model, (images[:4], labels[:4]), name="net", run_dir=tmp_path / "run", **how)
    threats = {row["threat_model"] for row in report["results"]}
    assert threats == {"oblivious", "bpda", "adaptive", "adaptive-eot", "blackbox"}
    info = json.loads((tmp_path / "run" / "robustbench.json").read_text())
    adaptive = next(row for row in report["results"] if row["threat_model"] == "adaptive")
    fields = ["link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture",
              "eps", "clean_acc", "reported", "autoattack_acc", "footnote", "unreliable", "external"]  # fmt: skip
    assert sorted(info) == sorted(fields)
    assert info["autoattack_acc"] == f"{adaptive['robust_accuracy']:.2f}"
    assert info["architecture"] == "net behind Blur"


WRONG: dict[str, tuple[Any, str]] = {
    "probabilities": (lambda: nn.Sequential(train_small(), nn.Softmax(1)), "gives probabilities; hand over logits"),
    "training mode": (lambda: train_small().train(), "is in training mode; call .eval"),
    "classes": (lambda: train_small(7, steps=1), "gives 7 logits, the images have 10 classes"),
    "no module": (lambda: torch.sin, "is builtin_function_or_method; expected an nn.Module"),
    "other size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), "does not take images .64, 3, 16, 16"),
    "normalises twice": (lambda: normalized(normalized(Rescaled(1, -2))), "normalises twice"),
    "not normalised": (lambda: Rescaled(0.25, 0.5), "wants images that are normalised"),
    "255": (lambda: Rescaled(1 / 255, 0), "from 0 to 255"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_models_handed_over_wrongly(tmp_path: Path, test_set: ShardSet, mistake: str) -> None:
    """Probabilities, training mode, wrong classes, sizes and normalisation: one line, and nothing is written."""
    make, message = WRONG[mistake]
    model = make()
    model = model.eval() if isinstance(model, nn.Module) and mistake != "training mode" else model
    with pytest.raises(UserError, match=message) as error:
        evaluate(model, test_set, run_dir=tmp_path / "run", **QUICK)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_right_models_pass() -> None:
    """The same classifier, put together rightly, passes the checks that its wrong sisters fail."""
    from maep.evaluation.audit.model_contract import check_answers

    images, labels = digits()
    for model in (train_small(), normalized(Rescaled(1, -2))):
        check_answers(model.eval(), images[:64], labels[:64], 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, labels: (images * 2 - 1, labels), r"images are torch.float32 from -1 to 1; expected float in"),
        (lambda images, labels: (images[:, :1], labels), r"expected \[N, 3, H, W\]"),
        (lambda images, labels: (images, labels + 3), "sample 7 has label 10; expected 0 to 9"),
    ],
)
def test_wrong_data(tmp_path: Path, change: Any, message: str) -> None:
    """Images outside [0, 1] or of another shape and labels out of range are named."""
    images, labels = digits()
    with pytest.raises(UserError, match=message):
        evaluate(train_small(), change(images[:10], labels[:10]), run_dir=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_the_verb(
    tmp_path: Path, test_set: ShardSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`maep evaluate` takes a function from the current directory, and refuses a directory of another model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    lines = ["from tests.small import train_small", "def small(): return train_small()",
             "def other(): return train_small(steps=40)"]  # fmt: skip
    (tmp_path / "evaluated_here.py").write_text("\n".join(lines))
    settings = [f"evaluation.{key}={json.dumps(value)}" for key, value in QUICK.items()]
    assert main(["--model", "evaluated_here:small", "--data", str(test_set.path), *settings]) == 0
    assert (tmp_path / "runs" / "small" / "report.json").is_file()
    assert "honesty checks passed" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"plan.json: was written for another model; choose another run.dir"):
        main(["--model", "evaluated_here:other", "--data", str(test_set.path), "run.dir=runs/small", *settings])
    with pytest.raises(UserError, match="--model evaluated_here:nothing: cannot be imported"):
        main(["--model", "evaluated_here:nothing", "--data", str(test_set.path)])
    with pytest.raises(UserError, match="give --model MODULE:FUNCTION and --data SHARDS"):
        main(["--data", str(test_set.path)])
