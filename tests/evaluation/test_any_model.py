"""Any model can be evaluated, from Python and by `maep evaluate`; what was handed over wrongly is named in one line."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maep import PurifiedClassifier
from maep.cli.evaluate import main
from maep.config.load import load_settings
from maep.data.shards import ShardSet
from maep.evaluation import evaluate
from maep.evaluation.answers import Autocast, JudgedModel
from maep.evaluation.audit.first_minute import first_findings
from maep.evaluation.audit.model_contract import handling_of
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


class WantsUint8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = train_small()

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8, "bytes"
        return self.classifier(images.float() / 255)


class ChannelsLast(WantsUint8):
    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[3] == 3, "channels"
        return self.classifier(images.permute(0, 3, 1, 2))


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


class Answering(nn.Module):
    """The small classifier, its answer given in another form."""

    def __init__(self, form: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.classifier, self.form = train_small(), form

    def forward(self, images: Tensor) -> object:
        return self.form(self.classifier(images))


def with_weights(value: float) -> nn.Module:
    model = train_small()
    next(model.parameters()).data[0] = value
    return model


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return train_small()


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
    page = (tmp_path / "run" / "report.html").read_text()
    meanings = " ".join(re.findall(r'(?s)<div class="meaning">(.*?)</div>', page))
    assert meanings.count("<p>") == 2 * len(rows)
    assert "purif" not in meanings
    assert "an attacker who knows the model tests the model" in page


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
    "training mode": (lambda: train_small().train(), "is in training mode; call .eval"),
    "classes": (lambda: train_small(7, steps=1), "gives 7 logits, the images have 10 classes"),
    "no module": (lambda: torch.sin, "is builtin_function_or_method; expected an nn.Module"),
    "other size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), "does not take images .64, 3, 16, 16"),
    "uint8": (lambda: WantsUint8(), "wants uint8 images from 0 to 255"),
    "channels last": (lambda: ChannelsLast(), r"wants images .N, H, W, 3.; put images.permute"),
    "meta": (lambda: train_small().to("meta"), "0.weight has no values yet"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "1.weight has no values yet"),
    "lazy buffers": (lambda: nn.Sequential(nn.LazyBatchNorm2d(affine=False), train_small()), "0.running_mean has no"),
    "inference mode": (lambda: in_inference_mode(), "0.weight was made in torch.inference_mode.*copy.deepcopy"),
    "not finite": (lambda: with_weights(float("nan")), "holds values that are not finite"),
    "NaN": (lambda: nn.Sequential(train_small(), Times(float("nan"))), "gives logits that are not finite, for image 0"),
    "class numbers": (lambda: Answering(lambda logits: logits.argmax(1)), r"gives \(64,\) for 64 images"),
    "integers": (lambda: Answering(lambda logits: logits.long()), "gives torch.int64 for 64 images, no logits"),
    "one image": (lambda: Answering(lambda logits: logits.squeeze()), r"gives \(10,\) for 1 image;"),
    "dense": (lambda: Answering(lambda logits: logits[..., None, None]), "flatten it to .N, classes"),
    "text": (lambda: Answering(lambda logits: "seven"), "answers with str"),
    "two answers": (
        lambda: Answering(lambda logits: {"out": logits, "scores": logits}),
        r"dict with out: \(64, 10\), sc",
    ),
    "any error": (lambda: Answering(lambda logits: {}["logits"]), "does not take images .* KeyError: 'logits'"),
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


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"threat_models": ["oblivious", "bpda"]},
            r"threat_models=\[oblivious, bpda\]: of a model without a purifier .* choose adaptive, adaptive-eot or",
        ),
        ({"settings": load_settings(None, ["certify.sigma=[0.25]"])}, r"certify\.sigma=\[0\.25\]: .* by maep certify"),
    ],
)  # fmt: skip
def test_what_a_model_alone_has_not_is_refused(
    tmp_path: Path, test_set: ShardSet, how: dict[str, Any], message: str
) -> None:
    """Attackers who know less than all of it, and certificates: not left out without a word, and nothing is written."""
    with pytest.raises(UserError, match=message):
        evaluate(train_small(), test_set, run_dir=tmp_path / "run", **{**QUICK, **how})
    assert not (tmp_path / "run").exists()


def test_attacks_on_more_classes_than_there_are_are_refused_at_once(tmp_path: Path) -> None:
    """Before the attacks that come first are paid for; nothing is written."""
    images, labels = digits(3)
    how = {**QUICK, "threat_models": ["adaptive", "blackbox"], "attacks": ["fgsm", "autoattack-standard"]}
    with pytest.raises(
        UserError, match=r"attacks of adaptive: autoattack-standard: needs at least 4 classes .* have 3"
    ):
        evaluate(train_small(3), (images[:12], labels[:12]), run_dir=tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


GUESSES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "normalises twice": (lambda: normalized(normalized(Rescaled(1, -2))), "normalise twice"),
    "not normalised": (lambda: Rescaled(0.25, 0.5), "want images that are normalised"),
    "255": (lambda: Rescaled(1 / 255, 0), "want images from 0 to 255"),
}


@pytest.mark.parametrize("guess", GUESSES)
def test_a_guess_is_a_warning(tmp_path: Path, test_set: ShardSet, guess: str) -> None:
    """What may be meant as it is, is evaluated as it is, and the report says what it looks like."""
    make, message = GUESSES[guess]
    report = evaluate(make().eval(), test_set, run_dir=tmp_path / "run", **{**QUICK, "threat_models": ["adaptive"]})
    (finding,) = [each for each in report["honesty"]["none"]["findings"] if each["check"] == "normalisation"]
    assert finding["level"] == "warning"
    assert message in finding["text"]


def test_untrained_nets_are_not_guessed_about() -> None:
    """On 4 images, nothing can be said of how a net was put together; on 64, nothing is of one that guesses."""
    images, labels = digits()
    for seed in range(20):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)).eval().requires_grad_(False)
        for count in (4, 64):
            assert "normalisation" not in levels(net, images[:count], labels[:count], "warning")


def levels(model: nn.Module, images: Tensor, labels: Tensor, level: str) -> dict[str, str]:
    """`{check: text}` of the findings of that level in a model's first minute."""
    judged = JudgedModel(model, handling_of(model, images, Autocast({}))).eval()
    outcomes = first_findings(judged, images, labels, norm="Linf", eps=0.1, batch_size=6)
    return {finding.check: finding.text for finding in outcomes if finding.level == level}


def test_right_models_pass() -> None:
    """The same classifier, put together rightly, passes the checks that its wrong sisters fail."""
    images, labels = digits()
    for model in (train_small(), normalized(Rescaled(1, -2))):
        assert levels(model.eval(), images[:64], labels[:64], "passed").keys() == {"batch", "finite", "normalisation"}


class FromBatch(nn.Module):
    """Logits minus their mean over the batch."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits - logits.mean(0)


@pytest.mark.parametrize(
    ("layer", "said"),
    [(nn.BatchNorm2d(3, track_running_stats=False), r"0 \(BatchNorm2d\) takes its statistics from the batch"),
     (FromBatch(), "depends on the batch it is in")],
)  # fmt: skip
def test_answers_that_depend_on_the_batch(tmp_path: Path, layer: nn.Module, said: str) -> None:
    """An alarm that names it, in the report, in its rows and in the first minute."""
    images, labels = digits()
    order = (train_small(), layer) if isinstance(layer, FromBatch) else (layer, train_small())
    model = nn.Sequential(*order).eval()
    assert re.search(said, levels(model, images[:64], labels[:64], "alarm")["batch"])
    how = {**QUICK, "threat_models": ["adaptive"]}
    report = evaluate(model, (images[:12], labels[:12]), run_dir=tmp_path / "run", **how)
    assert all("batch" in row["alarms"] for row in report["results"])


class Root(nn.Module):
    """The identity, whose gradient is infinite, and times zero no number, where a pixel is black."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0 * images.clamp_min(0).sqrt()


def test_gradients_that_are_no_numbers(tmp_path: Path) -> None:
    """An alarm, and no traceback after an hour: every attack keeps its budget."""
    images, labels = digits()
    model = nn.Sequential(Root(), train_small()).eval()
    assert "gradients of 8 of 8 images are not finite" in levels(model, images[:64], labels[:64], "alarm")["finite"]
    how = {**QUICK, "images": 6, "attacks": ["pgd-3", "apgd-ce"], "threat_models": ["adaptive"]}
    report = evaluate(model, (images[:6], labels[:6]), run_dir=tmp_path / "run", **how)
    assert all("finite" in row["alarms"] and row["eps_used"] <= 0.1001 for row in report["results"])


def test_a_model_that_guesses_is_an_alarm(tmp_path: Path) -> None:
    """Clean accuracy that is not above chance goes with every number."""
    images, labels = digits()
    model = nn.Sequential(train_small(), Times(0.0)).eval()
    how = {**QUICK, "threat_models": ["adaptive"]}
    report = evaluate(model, (images[:12], labels[:12]), run_dir=tmp_path / "run", **how)
    assert all("clean accuracy" in row["alarms"] for row in report["results"])


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
