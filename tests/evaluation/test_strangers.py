"""A stranger's model is judged as its own forward, understood in what it answers and takes, and handed back."""

import json
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from maep import PurifiedClassifier
from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack
from maep.evaluation import evaluate
from maep.evaluation.answers import Autocast, JudgedModel
from maep.evaluation.any_model import defense_of, settings_of
from maep.evaluation.audit.model_contract import answers, check_answers, check_module, handling_of
from maep.evaluation.borrowing import borrowed
from maep.evaluation.image_set import ImageSet, read_images
from maep.runtime.errors import UserError
from tests.evaluation.test_any_model import QUICK, Answering
from tests.small import Blur, digits, train_small

HOW: dict[str, Any] = {**QUICK, "threat_models": ["adaptive"], "attacks": ["pgd-2"]}


def data(count: int = 12) -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[:count], labels[:count]


def row(model: nn.Module, directory: Path, source: Any = None, **how: Any) -> dict[str, Any]:
    report = evaluate(model, source or data(), run_dir=directory, **{**HOW, **how})
    result: dict[str, Any] = report["results"][0]
    return result


def clean(model: nn.Module) -> float:
    images, labels = data()
    return round(100 * float((model(images).argmax(1) == labels).double().mean()), 4)


class Parts(nn.Module):
    """Parts of two familiar names, and a forward of its own that asks only one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.purifier, self.classifier = nn.Threshold(2.0, 0.0), train_small()

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images)


class Further(PurifiedClassifier):
    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images)


def patched() -> nn.Module:
    model = PurifiedClassifier(nn.Threshold(2.0, 0.0), train_small())
    model.forward = model.classifier.forward  # type: ignore[method-assign]
    return model


def hooked() -> nn.Module:
    model = PurifiedClassifier(nn.Threshold(2.0, 0.0), train_small())
    model.register_forward_hook(lambda module, inputs, _: module.classifier(*inputs))
    return model


@pytest.mark.parametrize(
    "make", [Parts, lambda: Further(nn.Threshold(2.0, 0.0), train_small()), patched, hooked],
    ids=["parts", "subclass", "own forward", "hook"],
)  # fmt: skip
def test_the_forward_is_judged(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    """Taken apart, each of these would answer on black images."""
    result = row(make().eval(), tmp_path)
    assert (result["purifier"], result["kind"]) == ("none", "none")
    assert result["clean_accuracy"] == result["undefended_clean_accuracy"] == clean(train_small()) > 80


def test_a_real_one_is_taken_apart(tmp_path: Path) -> None:
    """And its rows say of what kind it is, and how much of it there is."""
    result = row(PurifiedClassifier(Blur(), train_small()).eval(), tmp_path)
    assert [result[key] for key in ("purifier", "kind", "parameters", "deterministic")] == ["Blur", "other", 9, True]


def test_another_model_overwrites_nothing(tmp_path: Path) -> None:
    """Of another label, or beside what another command wrote: refused, naming the run and what to choose."""
    row(train_small(), tmp_path / "run")
    before = (tmp_path / "run" / "report.json").read_bytes()
    with pytest.raises(UserError, match=r"run model holds the report of another model \(none\); .*--name NAME"):
        row(PurifiedClassifier(Blur(), train_small()).eval(), tmp_path / "run")
    with pytest.raises(UserError, match="was written for another model; .*--name NAME"):
        row(train_small(steps=40), tmp_path / "run")
    assert (tmp_path / "run" / "report.json").read_bytes() == before
    (tmp_path / "training" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoints: run model is of something else"):
        row(train_small(), tmp_path / "training")


@dataclass
class Output:
    logits: Tensor
    loss: None = None


Pair = namedtuple("Pair", ["scores", "features"])
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda logits: {"logits": logits, "features": logits},
    "output": lambda logits: {"output": logits, "depth": 3},
    "its only table": lambda logits: {"head_a": logits, "map": logits[..., None]},
    "object": lambda logits: Output(logits),
    "namedtuple": lambda logits: Pair(logits, logits[:, :2]),
    "tuple": lambda logits: (logits, logits[..., None]),
    "list": lambda logits: [logits],
    "bf16": lambda logits: logits.bfloat16(),
    "fp64": lambda logits: logits.double(),
    "probabilities": lambda logits: logits.softmax(1),
}


@pytest.mark.parametrize("form", FORMS)
def test_common_answers(form: str) -> None:
    """All are the same model, and answer in fp32 as it does."""
    model = Answering(FORMS[form]).eval()
    judged = JudgedModel(model, handling_of(model, data()[0], Autocast({})))
    logits = check_answers(judged, data()[0], 10)
    assert logits.dtype == torch.float32
    tolerance = 0.1 if form == "bf16" else 1e-4
    torch.testing.assert_close(logits.softmax(1), train_small()(data()[0]).softmax(1), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    """A model in another precision is asked in it, attacked in fp32, with AutoAttack as well."""
    model = train_small().to(dtype)
    result = row(model, tmp_path, attacks=["apgd-ce"])
    assert abs(result["clean_accuracy"] - clean(train_small())) < 10
    assert next(model.parameters()).dtype == dtype


def test_under_autocast(tmp_path: Path) -> None:
    """The caller's autocast is the model's alone."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = row(train_small(), tmp_path)
    assert abs(result["clean_accuracy"] - clean(train_small())) < 10


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back(tmp_path: Path, fails: bool) -> None:
    """Parameters, gradients, modes, hooks, counters: as they were, also after an error."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = train_small(), 0
            self.register_buffer("total", torch.zeros(()))
            self.register_buffer("replaced", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            self.total += 1
            self.replaced = self.replaced + 1
            return self.net(images)

    model = Counting().eval()
    first, second, *_ = model.parameters()
    first.requires_grad_(True)
    first.grad = gradient = torch.ones_like(first)
    images, labels = data()
    if fails:
        with pytest.raises(UserError):
            row(model, tmp_path, (images, labels + 5))
    else:
        row(model, tmp_path)
        assert row(model, tmp_path)["n"] == 12, "it is the same model the second time"
    assert (first.requires_grad, second.requires_grad, second.grad) == (True, False, None)
    assert first.grad is gradient
    assert bool(gradient.eq(1).all())
    assert (model.calls, float(model.total), float(model.replaced)) == (0, 0.0, 0.0)
    assert not any(module.training for module in model.modules())


class InPlace(nn.Module):
    """Normalises its input in place, as torchvision's Normalize(inplace=True) does."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.mul_(self.factor) / self.factor)


def exported(model: nn.Module) -> nn.Module:
    """As torch.export gives it: its flag says training, and its eval() raises NotImplementedError."""
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(model, (data()[0],), dynamic_shapes=({0: batch},)).module()


HANDED_OVER: dict[str, Callable[[], nn.Module]] = {
    "scripted": lambda: torch.jit.script(train_small()),
    "traced": lambda: torch.jit.trace(train_small(), data()[0]),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(train_small())),
    "compiled": lambda: torch.compile(train_small(), backend="eager"),
    "exported": lambda: exported(train_small()),
    "in place": lambda: InPlace(train_small(), 0.5).eval(),
    "behind a purifier in place": lambda: PurifiedClassifier(InPlace(nn.Identity(), 0.5), train_small()).eval(),
    "scripted, behind a purifier": lambda: PurifiedClassifier(
        nn.Threshold(-1.0, 0.0), HANDED_OVER["scripted"]()
    ).eval(),
}


def attacked(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of a model that was handed over, and its images after two steps of PGD."""
    with borrowed(model):
        check_module(model)
        handling = handling_of(model, images, Autocast({}))
        judged = defense_of(model, ("", ""), handling).purified_classifier
        spec = AttackSpec("pgd", "Linf", 0.1, 0.05, 2, True, False)
        return answers(JudgedModel(model, handling), images), attack(
            judged, images, labels, spec, range(len(images)), 0
        )


@pytest.mark.parametrize("form", HANDED_OVER)
def test_models_in_other_forms(form: str) -> None:
    """Compiled, scripted, exported or changing what it is given: judged as the plain one, and handed back with it."""
    (images, labels), model = data(4), HANDED_OVER[form]()
    before, modes = images.clone(), [getattr(each, "training", None) for each in model.modules()]
    torch.testing.assert_close(attacked(model, images, labels), attacked(train_small(), images, labels))
    assert torch.equal(images, before)
    assert [getattr(each, "training", None) for each in model.modules()] == modes


def sources() -> dict[str, Any]:
    images, labels = data()
    eight = (images * 255).round().to(torch.uint8)
    pairs = TensorDataset(images, labels)
    return {
        "arrays": (images.numpy(), labels.numpy()),
        "channels last, uint8": (eight.permute(0, 2, 3, 1).numpy(), labels.tolist()),
        "lists": (list(images), list(labels)),
        "dataset": pairs,
        "loader": DataLoader(pairs, batch_size=5),
        "list of samples": list(pairs),
        "dict": {"pixel_values": images, "labels": labels},
        "batches": iter([{"image": images[:7], "label": labels[:7]}]),
        "fp64": (images.double(), labels.int()),
    }


@pytest.mark.parametrize("name", sorted(sources()))
def test_images_from_anywhere(name: str) -> None:
    """The same images, whatever holds them; of what is collected, no more than are evaluated."""
    images, labels = data()
    test = read_images(sources()[name], 12)
    assert isinstance(test, ImageSet)
    torch.testing.assert_close(test.images, images[: len(test)], atol=1e-6, rtol=0)
    assert (test.images.dtype, test.labels.tolist()) == (torch.float32, labels[: len(test)].tolist())
    assert len(test) == (7 if name == "batches" else 12)


IMAGES, LABELS = data()
WRONG_DATA: dict[str, tuple[Any, str]] = {
    "0 to 255": ((IMAGES * 255, LABELS), "expected float in .* divide them by 255"),
    "black uint8": ((IMAGES.to(torch.uint8), LABELS), "uint8 from 0 to 1"),
    "grey": ((IMAGES[:, :1], LABELS), "repeat the grey channel"),
    "ambiguous": ((IMAGES[..., :3], LABELS), "could be either"),
    "one image": ((IMAGES[0], LABELS[:1]), "add the first axis"),
    "NaN": ((IMAGES / 0, LABELS), "image 0 has pixels that are not finite"),
    "one-hot": ((IMAGES, nn.functional.one_hot(LABELS, 10)), "look one-hot"),
    "float labels": ((IMAGES, LABELS.float()), "labels are torch.float32; expected class numbers"),
    "text labels": ((IMAGES, ["one"] * 12), "labels: list cannot be read as numbers"),
    "fewer labels": ((IMAGES, LABELS[:3]), "12 images .* and 3 labels"),
    "from 1": ((IMAGES, LABELS + 1), "has label 10; expected 0 to 9; do they begin at 1"),
    "none": ((IMAGES[:0], LABELS[:0]), "no images"),
    "no labels": (IMAGES, "without labels"),
    "nothing": (None, "is NoneType; expected a shard set"),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_data_that_cannot_be_meant(tmp_path: Path, name: str) -> None:
    """One line that says what was seen and the likely mend; nothing is written."""
    source, message = WRONG_DATA[name]
    with pytest.raises(UserError, match=message):
        evaluate(train_small(), source, run_dir=tmp_path / "run", **HOW)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [({"eps": [-1.0]}, "evaluation.eps"), ({"images": 0}, "evaluation.images=0 .*: must be at least 1"),
     ({"imges": 3}, "did you mean evaluation.images"), ({"norm": "L7"}, "choose one of Linf, L2"),
     ({"images": "many"}, "evaluation.images=many .*expected"), ({"eps": [8.0]}, "evaluation.eps")],
)  # fmt: skip
def test_keywords_are_checked(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    """As on the command line: ranges, types, the nearest key; numbers of NumPy are numbers."""
    with pytest.raises(UserError, match=message):
        evaluate(train_small(), data(), run_dir=tmp_path / "run", **{**HOW, **how})
    assert settings_of("net", None, None, {"eps": np.array([0.05])}).evaluation.eps == [0.05]


def test_alarms_are_in_the_report(tmp_path: Path) -> None:
    """An empty list where there is none."""
    row(train_small(), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["results"][0]["alarms"] == []
