"""Questions put to a defense itself, on a few images, before its numbers are believed.

Each is a sign of masked gradients (Athalye et al. 2018, Carlini et al. 2019) if the answer is not what it should be:
the output is not random, the gradient is there and agrees with finite differences, the attack's loss rises with its
budget and its steps, and the attack finds what was planted for it. `maep.evaluation.audit.findings` says what the
answers mean. The curves take 228 gradient steps on each of `evaluation.check_images`, through a random defense once for
each of `evaluation.draws`.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.catalog import gradient_spec
from maep.attacks.gradient import attack, finite
from maep.attacks.reseeding import reseeded
from maep.attacks.threat_models import AdaptiveEot
from maep.evaluation.audit.planted import PlantedImages, planted_images
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.plan import CHECKS, Plan
from maep.runtime.digests import digest
from maep.runtime.errors import fail
from maep.storage.documents import Document

VERSION = 2  # of the questions, as part of their identity: raising it asks again
# Times the budget. 0 gives the clean loss; at 8 times a budget of 8/255, a quarter of the range, every image must fall.
BUDGETS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# PGD with steps of eps/4 crosses the ball in 8; beyond 20 more steps should gain little, and must not lose.
STEPS = (1, 2, 5, 10, 20, 50)
CURVE_STEPS = 20  # of the attack whose budget is varied
# Below an 8-bit level. The margin of a large image bends within the long ones, fp32 rounds the short ones away; a false
# gradient agrees with none.
DIFFERENCES = (1e-3, 1e-4, 1e-5)
TINY = 1e-12  # in the place of a slope of zero when relative errors are taken


@dataclass(frozen=True)
class GradientSizes:
    """zero_share: of images without any gradient, in [0, 1]. The norms: medians of the margin's gradient in L2, of the
    purified classifier and of the undefended one.
    """

    zero_share: float
    median_norm: float
    undefended_median_norm: float


@dataclass(frozen=True)
class Slope:
    """The margin's slope on one image, by its gradient and by finite differences; error: their relative difference."""

    gradient: float
    measured: float
    error: float


@dataclass(frozen=True)
class CurvePoint:
    """Mean loss and accuracy in percent after PGD of so many steps within eps ([0,1] pixels)."""

    steps: int
    eps: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class CheckAnswers:
    """What a defense answered. images: how many were asked about; norm, eps: the evaluation's first budget.

    logit_spread: the largest difference between logits when the same images are asked again. against_eps,
    against_steps: PGD at rising budgets, and with more and more steps. planted: what PGD has found of adversarial
    images that are known to be there; None of a random defense, and in the answers of an earlier version.
    """

    images: int
    norm: str
    eps: float
    random: bool
    logit_spread: float
    has_gradient: bool
    gradients: GradientSizes
    finite_differences: tuple[Slope, ...]
    against_eps: tuple[CurvePoint, ...]
    against_steps: tuple[CurvePoint, ...]
    planted: PlantedImages | None = None


@dataclass(frozen=True)
class CheckRecord(Document):
    """checks.json. identity: of the questions; classifier, purifier: identities of who was asked."""

    FORMAT: ClassVar[int] = 2  # 1 may lack its digest
    SELF_CHECKED: ClassVar[bool] = True
    DIGEST_SINCE: ClassVar[int | None] = 2

    identity: str
    classifier: str
    purifier: str
    answers: CheckAnswers

    @classmethod
    def upgrade(cls, entries: dict[str, Any], version: int) -> dict[str, Any]:
        """Format 0 had the answers beside the identities."""
        return {**entries, "answers": entries} if version == 0 else entries


@dataclass(frozen=True)
class CheckHead(Document):
    """What tells whose a checks.json is, whatever else is in it."""

    FORMAT: ClassVar[int] = CheckRecord.FORMAT

    identity: str = ""
    classifier: str = ""
    purifier: str = ""


def read_checks(plan: Plan, directory: Path) -> CheckAnswers:
    """checks.json of `directory`. Raises UserError when it is missing or of another classifier or purifier."""
    path = directory / CHECKS
    head = CheckHead.read(path) if path.is_file() else CheckHead()
    if (head.classifier, head.purifier) != (plan.classifier, plan.purifier):
        fail(f"{path}: the defense has not been checked; run stage=evaluate to complete it")
    return CheckRecord.read(path).answers


class MaskingCheck:
    """The questions to one evaluation's purified classifier; `checks.json` in its directory holds the answers."""

    description = "gradients, differences, loss curves"

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.path = evaluation.directory / CHECKS
        settings = evaluation.settings.evaluation
        self.seed = evaluation.settings.run.seed
        self.count = min(settings.check_images, len(evaluation.test))
        self.norm, self.eps = settings.norm, settings.eps[0]
        self.draws, self.at_once = settings.draws, settings.draws_at_once

    @property
    def identity(self) -> str:
        """Digest of all that the answers depend on."""
        defense, images = self.evaluation.defense, self.evaluation.test.identity
        inputs = [defense.classifier_identity, defense.purifier_identity, images, self.seed]
        if defense.is_approximated:  # named here alone, so that the answers of all others stay as they are
            inputs.append("identity backward")
        if self.at_once > 1:  # sums of another order, as in the identities of attacks
            inputs.append(f"{self.at_once} draws at once")
        return digest([VERSION, *inputs, self.count, self.norm, self.eps, self.draws])

    @property
    def claim(self) -> str:
        """The name under which workers claim it."""
        return f"checks-{self.identity[:24]}"

    def is_done(self) -> bool:
        """Whether the answers are there."""
        return self.path.is_file() and CheckHead.read(self.path).identity == self.identity

    def run(self) -> None:
        """Ask and write the answers down."""
        defense = self.evaluation.defense
        target = self.evaluation.targets.exact(AdaptiveEot(), self.draws if self.evaluation.targets.is_random else 1)
        images, labels = self.evaluation.images(range(self.count))
        with reseeded(target, self.seed):
            answers = self._answers(target, images, labels)
        CheckRecord(self.identity, defense.classifier_identity, defense.purifier_identity, answers).write(self.path)

    def _answers(self, target: nn.Module, images: Tensor, labels: Tensor) -> CheckAnswers:
        """The order of the questions decides what a random defense draws for each, and so is part of the answers."""
        defense, targets = self.evaluation.defense, self.evaluation.targets
        return CheckAnswers(
            images=self.count,
            norm=self.norm,
            eps=self.eps,
            random=targets.is_random,
            logit_spread=logit_spread(defense.purified_classifier, images),
            has_gradient=targets.has_gradient,
            gradients=gradient_sizes(target, defense.classifier, images, labels),
            finite_differences=tuple(finite_differences(target, images, labels, self.seed)),
            against_eps=tuple(
                self._attacked(target, images, labels, CURVE_STEPS, times * self.eps) for times in BUDGETS
            ),
            against_steps=tuple(self._attacked(target, images, labels, steps, self.eps) for steps in STEPS),
            # Draws move the logits by more than a planted point does: of a random defense nothing is certain.
            planted=None
            if targets.is_random or not self.eps
            else planted_images(target, images, self._spec(CURVE_STEPS, self.eps), self.seed),
        )

    def _spec(self, steps: int, eps: float) -> AttackSpec:
        """PGD of `steps` steps of eps/4 within `eps`."""
        spec = gradient_spec(f"pgd-{steps}", self.norm, eps)
        assert spec is not None
        return replace(spec, step=eps / 4)

    def _attacked(self, model: nn.Module, images: Tensor, labels: Tensor, steps: int, eps: float) -> CurvePoint:
        """What PGD leaves."""
        spec = self._spec(steps, eps)
        adversarial = attack(model, images, labels, spec, range(len(images)), self.seed)
        with torch.no_grad():
            logits = model(adversarial)
        loss = float(F.cross_entropy(logits, labels))
        accuracy = 100 * float((logits.argmax(1) == labels).float().mean())
        return CurvePoint(steps, eps, round(loss, 6), round(accuracy, 4))


@torch.no_grad()
def logit_spread(model: nn.Module, images: Tensor, times: int = 3) -> float:
    """The largest difference between logits when the same images are asked `times` times; 0 for a fixed function.

    images: [N, 3, H, W] in [0,1].
    """
    answers = torch.stack([model(images) for _ in range(times)])
    return float((answers.amax(0) - answers.amin(0)).max())


def margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The highest other logit minus the label's, [N]: what an attack raises; unlike a cross-entropy, unbounded.

    images: [N, 3, H, W] in [0,1]; labels: int64 [N].
    """
    logits = model(images)
    of_label = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - of_label


def margin_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each image's margin, [N, 3, H, W]; zeros from a model that gives none.

    images: [N, 3, H, W] in [0,1]; labels: int64 [N].
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_(True)
        total = margins(model, images, labels).sum()
        if not total.requires_grad:
            return torch.zeros_like(images)
        gradient = torch.autograd.grad(total, images, allow_unused=True)[0]
        return torch.zeros_like(images) if gradient is None else finite(gradient)


def gradient_sizes(defended: nn.Module, undefended: nn.Module, images: Tensor, labels: Tensor) -> GradientSizes:
    """How large the margin's gradients are with and without the defense.

    defended, undefended: images → logits. images: [N, 3, H, W] in [0,1]; labels: int64 [N].
    """
    norms = [margin_gradients(model, images, labels).flatten(1).norm(dim=1) for model in (defended, undefended)]
    zero_share = float((norms[0] == 0).float().mean())
    return GradientSizes(zero_share, float(norms[0].median()), float(norms[1].median()))


@torch.no_grad()
def finite_differences(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Iterator[Slope]:
    """For each image, the margin's slope along its gradient's sign: by the gradient, and by central differences.

    images: [N, 3, H, W] in [0,1]; labels: int64 [N]; seed: of random models and directions. Where the gradient is zero
    the direction is random. Of the steps in `DIFFERENCES` the one that agrees best counts.
    """
    with reseeded(model, seed, 1):
        gradients = margin_gradients(model, images, labels)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, images.shape, generator=generator).to(images) * 2 - 1
    direction = torch.where(gradients == 0, signs, gradients.sign())
    by_gradient = (gradients * direction).flatten(1).sum(1)
    measured = [_central(model, images, step * direction, labels, seed) / step for step in DIFFERENCES]
    for expected, *slopes in zip(by_gradient.tolist(), *(slope.tolist() for slope in measured), strict=True):
        slope = min(slopes, key=lambda slope: abs(expected - slope))
        yield Slope(expected, slope, abs(expected - slope) / max(abs(expected), abs(slope), TINY))


def _central(model: nn.Module, images: Tensor, move: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Half the change of the margins from one side of the images to the other, [N]."""
    ahead, behind = (_same_draws(model, images + sign * move, labels, seed) for sign in (1, -1))
    return (ahead - behind) / 2


def _same_draws(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    with reseeded(model, seed, 1):
        return margins(model, images, labels)


def median_error(slopes: Sequence[Slope]) -> float:
    """The median relative error of `finite_differences`."""
    return statistics.median(slope.error for slope in slopes)
