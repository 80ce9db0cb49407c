"""Questions put to a defence itself, on a few images, before its numbers are believed.

Each is a sign of masked gradients (Athalye et al. 2018, Carlini et al. 2019) if the answer is not what it should be:
the output is not random, the gradient is there and agrees with finite differences, the attack's loss rises with its
budget and its steps. `maep.evaluation.audit.findings` says what the answers mean.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.attacks.catalog import gradient_spec
from maep.attacks.gradient import attack
from maep.attacks.reseeding import reseeded
from maep.attacks.threat_models import AdaptiveEot
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.plan import CHECKS
from maep.storage.atomic import digest, read_json, write_json

VERSION = 2
BUDGETS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
STEPS = (1, 2, 5, 10, 20, 50)
# Below an 8-bit level. The margin of a large image bends within the long ones, fp32 rounds the short ones away; a false
# gradient agrees with none.
DIFFERENCES = (1e-3, 1e-4, 1e-5)
TINY = 1e-12


class Checks:
    """The questions to one evaluation's purified classifier; `checks.json` in its directory holds the answers."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        settings = evaluation.settings
        self.count = min(settings.evaluation.check_images, len(evaluation.test))
        self.norm, self.eps = settings.evaluation.norm, settings.evaluation.eps[0]

    @property
    def identity(self) -> str:
        """Digest of all that the answers depend on."""
        evaluation = self.evaluation
        facts = [VERSION, evaluation.classifier_identity, evaluation.purifier_identity, evaluation.test.identity]
        settings = evaluation.settings
        return digest([*facts, settings.run.seed, self.count, self.norm, self.eps, settings.evaluation.draws])

    def is_done(self) -> bool:
        """Whether the answers are there."""
        path = self.evaluation.directory / CHECKS
        return path.is_file() and read_json(path).get("identity") == self.identity

    def run(self) -> None:
        """Ask and write the answers down."""
        images, labels = self.evaluation.images(range(self.count))
        whole = self.evaluation.whole
        draws = self.evaluation.settings.evaluation.draws if self.evaluation.is_random else 1
        target = self.evaluation.followed(
            AdaptiveEot().target(self.evaluation.purifier, self.evaluation.classifier, draws)
        )
        seed = self.evaluation.settings.run.seed
        with reseeded(target, seed):
            answers = {
                "identity": self.identity,
                "classifier": self.evaluation.classifier_identity,
                "purifier": self.evaluation.purifier_identity,
                "images": self.count,
                "norm": self.norm,
                "eps": self.eps,
                "random": self.evaluation.is_random,
                "logit_spread": logit_spread(whole, images),
                "has_gradient": self.evaluation.has_gradient,
                "gradients": gradient_sizes(target, self.evaluation.classifier, images, labels),
                "finite_differences": list(finite_differences(target, images, labels, seed)),
                "against_eps": [self._attacked(target, images, labels, 20, times * self.eps) for times in BUDGETS],
                "against_steps": [self._attacked(target, images, labels, steps, self.eps) for steps in STEPS],
            }
        write_json(self.evaluation.directory / CHECKS, answers)

    def _attacked(self, model: nn.Module, images: Tensor, labels: Tensor, steps: int, eps: float) -> dict[str, float]:
        """Mean loss and accuracy in percent after PGD of `steps` steps of eps/4 within `eps`."""
        spec = gradient_spec(f"pgd-{steps}", self.norm, eps)
        assert spec is not None
        spec = replace(spec, step=eps / 4)
        attacked = attack(model, images, labels, spec, range(len(images)), self.evaluation.settings.run.seed)
        with torch.no_grad():
            logits = model(attacked)
        loss = float(F.cross_entropy(logits, labels))
        accuracy = 100 * float((logits.argmax(1) == labels).float().mean())
        return {"steps": steps, "eps": eps, "loss": round(loss, 6), "accuracy": round(accuracy, 4)}


@torch.no_grad()
def logit_spread(model: nn.Module, images: Tensor, times: int = 3) -> float:
    """The largest difference between logits when the same images are asked `times` times; 0 for a fixed function."""
    answers = torch.stack([model(images) for _ in range(times)])
    return float((answers.amax(0) - answers.amin(0)).max())


def margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The highest other logit minus the label's, [N]: what an attack raises; unlike a cross-entropy, unbounded."""
    logits = model(images)
    own = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own


def margin_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each image's margin, [N, 3, H, W]; zeros from a model that gives none."""
    with torch.enable_grad():
        images = images.detach().requires_grad_(True)
        total = margins(model, images, labels).sum()
        if not total.requires_grad:
            return torch.zeros_like(images)
        found = torch.autograd.grad(total, images, allow_unused=True)[0]
        return torch.zeros_like(images) if found is None else found


def gradient_sizes(whole: nn.Module, alone: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of images without any gradient, and the margin's median gradient norm (L2), whole and classifier alone."""
    norms = [margin_gradients(model, images, labels).flatten(1).norm(dim=1) for model in (whole, alone)]
    return {
        "zero_share": float((norms[0] == 0).float().mean()),
        "median_norm": float(norms[0].median()),
        "undefended_median_norm": float(norms[1].median()),
    }


@torch.no_grad()
def finite_differences(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Iterator[dict[str, float]]:
    """For each image, the margin's slope along its gradient's sign: by the gradient, and by central differences.

    Where the gradient is zero the direction is random. Of the steps in `DIFFERENCES`
    the one that agrees best counts.
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
        error = abs(expected - slope) / max(abs(expected), abs(slope), TINY)
        yield {"gradient": expected, "measured": slope, "error": error}


def _central(model: nn.Module, images: Tensor, move: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Half the change of the margins from one side of the images to the other, [N]."""
    ahead, behind = (_same_draws(model, images + sign * move, labels, seed) for sign in (1, -1))
    return (ahead - behind) / 2


def _same_draws(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    with reseeded(model, seed, 1):
        return margins(model, images, labels)


def median_error(differences: Sequence[dict[str, Any]]) -> float:
    """The median relative error of `finite_differences`."""
    return statistics.median(entry["error"] for entry in differences)
