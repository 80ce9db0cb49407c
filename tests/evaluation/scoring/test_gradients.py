"""Exact gradients that are asked of a defense that has none are refused; otherwise what takes their place is said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maep.config.evaluation_settings import EvaluationSettings
from maep.config.implementations import THREAT_MODELS, WITHOUT_GRADIENT
from maep.config.load import load_settings
from maep.evaluation import evaluate
from maep.evaluation.scoring.gradients import followers
from maep.models.defended import DefendedClassifier
from maep.models.purified import PurifiedClassifier
from maep.pipeline.execution import run_pipeline
from maep.pipeline.stages import wanted_stages
from maep.purifiers import save_purifier
from maep.purifiers.jpeg import JpegPurifier, JpegSettings
from maep.purifiers.registry import KINDS, purifier_class
from maep.runtime.errors import UserError
from maep.storage.atomic import read_json
from tests.small import digits, train_small
from tests.tiny import Problem

EXACT = "evaluation.exact_gradients=true"
QUICK: dict[str, Any] = {
    "images": 4, "adaptive_images": 4, "attacks": ["fgsm"], "eps": [0.1], "figure_images": 1, "check_images": 1,
    "threat_models": ["adaptive"],
}  # fmt: skip


class Detached(nn.Module):
    """A stranger's purifier that autograd cannot see through."""

    def forward(self, images: Tensor) -> Tensor:
        return images.detach().clone()


class Straight(DefendedClassifier):
    """A defense that says that its gradient is none of its own, though autograd sees one."""

    is_differentiable = False

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images + (images.round() - images).detach())
        return logits

    def approximation(self) -> nn.Module:
        return self.classifier


class Mute(nn.Module):
    """A model whose logits have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = train_small()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits


def without_gradient() -> dict[str, nn.Module]:
    return {
        "JpegPurifier": PurifiedClassifier(JpegPurifier(JpegSettings()), train_small()),
        "Detached": PurifiedClassifier(Detached(), train_small()),
        "Straight": Straight(train_small()),
        "none": Mute(),
    }


def data() -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[:4], labels[:4]


@pytest.mark.parametrize("name", list(without_gradient()))
def test_a_model_without_a_gradient_is_refused(name: str, tmp_path: Path) -> None:
    """Ours and strangers' purifiers, a defended classifier that says so, a bare model: before anything is written."""
    model = without_gradient()[name].eval()
    with pytest.raises(UserError) as refused:
        evaluate(model, data(), name="small", run_dir=tmp_path / "run", **QUICK, exact_gradients=True)
    assert str(refused.value) == (
        f"evaluation.exact_gradients=true: {name} has none for evaluation.threat_models=[adaptive] to follow; choose "
        "among oblivious, bpda, bpda-intermediate, auxiliary-aware, blackbox, or set it to false"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "instead"), [("JpegPurifier", "of the classifier at the purified point (BPDA)"), ("none", "zeros")]
)
def test_what_takes_its_place_is_said(
    name: str, instead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default an evaluation goes on, and says it before its attacks; the report marks the row in red."""
    report = evaluate(without_gradient()[name].eval(), data(), name="small", run_dir=tmp_path, **QUICK)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "has no gradient; attackers" in line]
    assert line.startswith(f"{name}: ")
    assert "(adaptive)" in line
    assert line.endswith(instead)
    findings = {finding["check"]: finding["level"] for finding in report["honesty"][name]["findings"]}
    assert findings["gradients"] == "alarm"


def test_exact_gradients_are_not_refused_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The images that stand are the same as without asking, and nothing is said."""
    model = PurifiedClassifier(JpegPurifier(JpegSettings(codec="soft")), train_small()).eval()
    stood = []
    for asked in (False, True):
        evaluate(model, data(), name="small", run_dir=tmp_path / str(asked), **QUICK, exact_gradients=asked)
        record = tmp_path / str(asked) / "evaluation/JpegPurifier/adaptive/fgsm-Linf-0.1/chunk-0000.json"
        stood.append(read_json(record)["predictions"])
    assert stood[0] == stood[1]
    assert "has no gradient" not in capsys.readouterr().out


def test_every_threat_model_follows_gradients_or_does_not() -> None:
    """Who is not listed as without them counts as following them."""
    settings = EvaluationSettings(threat_models=list(THREAT_MODELS))
    assert followers(settings) == ["twin", "surrogate", "adaptive", "adaptive-eot"]
    assert set(WITHOUT_GRADIENT) < set(THREAT_MODELS)


@pytest.mark.parametrize("kind", ["jpeg", "bit_depth", "soap", "dram", "comdefend", "pixeldefend"])
def test_kinds_without_a_gradient_are_refused_before_a_run(kind: str, tmp_path: Path) -> None:
    """From the settings alone, before shards, classifier or training; not where nobody would follow them."""
    words = [f"run.dir={tmp_path}/run", f"run.cache={tmp_path}/cache", EXACT]
    with pytest.raises(UserError, match=rf"exact_gradients=true: purifier.kind={kind} has none for .*=\[adaptive\]"):
        wanted_stages(load_settings(f"{kind}/digits", [*words, "evaluation.threat_models=[oblivious,adaptive]"]), "all")
    wanted_stages(load_settings(f"{kind}/digits", [*words, "evaluation.threat_models=[oblivious,bpda]"]), "all")
    assert list(tmp_path.iterdir()) == []


def test_these_are_all_kinds_without_one() -> None:
    """A kind that says so without being in the test above is found here."""
    silent = {name for name in KINDS if purifier_class(name).is_differentiable is not True}
    assert silent | {"jpeg"} == {"jpeg", "bit_depth", "soap", "dram", "comdefend", "pixeldefend"}


def test_on_the_command_line(problem: Problem, tmp_path: Path) -> None:
    """One line and exit code 2, with no run directory; the same of a purifier that is given."""
    run, given = tmp_path / "run", tmp_path / "given"
    save_purifier(JpegPurifier(JpegSettings()), given)
    for words, name in ((["purifier.kind=jpeg"], "purifier.kind=jpeg"), ([f"purifier={given}"], str(given))):
        done = problem.run("evaluate", run, *words, EXACT)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith(f"error: {EXACT}: {name} has none for evaluation.threat_models=[")
        assert not run.exists()


def test_a_run_says_it(problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a kind without a gradient, before it is attacked."""
    words = ["purifier.kind=jpeg", "evaluation.images=4", "evaluation.adaptive_images=2", "evaluation.attacks=[fgsm]"]
    settings = load_settings("digits", problem.arguments(tmp_path / "run", *words)[1:])
    run_pipeline(settings, "all", lambda stage, _: pytest.fail(f"{stage} was launched"))
    said = capsys.readouterr().out
    assert "jpeg: has no gradient; attackers who would follow it (adaptive) get that of the classifier" in said
    assert said.index("jpeg: has no gradient") < said.index("jpeg · adaptive")


def test_a_rounded_model_has_other_gradients() -> None:
    """evaluation.precision=bf16 is refused beside it."""
    with pytest.raises(UserError, match="precision=bf16: attacks follow a rounded model"):
        load_settings("digits", [EXACT, "evaluation.precision=bf16"])
