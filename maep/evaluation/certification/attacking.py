"""Attacks on what is certified, image by image within the radii: what a certificate has beside it.

Two models are attacked, and must not be taken for each other. The smoothed classifier g is what the certificates are
of: nothing may fall within its certified radius. Purifier and classifier without noise, f∘P, are what is used where
nobody smooths; AutoAttack on them says nothing of g, whose answer may hold where theirs falls, and the other way.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.catalog import NamedAttack
from maep.attacks.gradient import attack
from maep.attacks.reseeding import reseeded
from maep.attacks.threat_models import Adaptive
from maep.config.evaluation_settings import EvaluationSettings
from maep.data.adversarial import quantise
from maep.evaluation.certification.attacked_record import (
    GRADIENT_DRAWS,
    SMOOTHED_ATTACK,
    AttackedImage,
    AttackedRecord,
    AttackTask,
    attack_facts,
    radii_of,
    read_attacked,
)
from maep.evaluation.certification.certificate_record import CertifyIdentity
from maep.evaluation.certification.smoothing import DRAWS, Smoothed
from maep.evaluation.scoring.chunk_attack import check_budget
from maep.evaluation.scoring.defense import Defense, Targets
from maep.evaluation.scoring.score import image_keys
from maep.evaluation.scoring.tasks import Task
from maep.runtime.digests import digest
from maep.runtime.randomness import keyed_rng

FOLLOWED, JUDGED = "certify-attack", "certify-attacked"  # purposes of the keyed noise: attacks see no draw of a verdict
STEPS = int(SMOOTHED_ATTACK.removeprefix("pgd-"))
SMALLEST = 1e-12  # in the place of a probability of zero, whose logarithm has no gradient

Turned = Callable[[Tensor, Tensor, list[int], float], list[bool]]


def falls(images: Tensor, labels: Tensor, radii: tuple[float, ...], turned: Turned) -> list[float | None]:
    """The smallest radius within which each image was turned, 0 for one that was wrong before; None: it stood.

    images: [N, 3, H, W] in [0, 1]; labels: int64 [N]. turned: (images, labels, their numbers, radius) → whether each
    is answered wrongly within the radius, where 0 asks without an attack. Radii ascend; what fell is asked no more.
    """
    fell: list[float | None] = [None] * len(images)
    for radius in (0.0, *radii):
        standing = [number for number, at in enumerate(fell) if at is None]
        if not standing:
            break
        for number, is_turned in zip(
            standing, turned(images[standing], labels[standing], standing, radius), strict=True
        ):
            fell[number] = radius if is_turned else None
    return fell


class NoisyProbabilities(nn.Module):
    """log of a model's mean probabilities under given noise, [N, C], which PGD follows (SmoothAdv, Salman 2019).

    model: [N, 3, H, W] → logits. noise: [N, K, 3, H, W], K draws for each image that it is asked about.
    """

    def __init__(self, model: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W], as many as there is noise for."""
        noisy = (images[:, None] + self.noise).flatten(0, 1)
        probabilities = self.model(noisy).softmax(1).unflatten(0, self.noise.shape[:2]).mean(1)
        return probabilities.clamp_min(SMALLEST).log()


@dataclass(frozen=True)
class SmoothedAttack:
    """PGD on g. model: what is followed, with gradients; smoothed: g; first: the number of the first image."""

    model: nn.Module
    smoothed: Smoothed
    first: int

    def __call__(self, images: Tensor, labels: Tensor, numbers: list[int], radius: float) -> list[bool]:
        """As `falls` asks it."""
        moved = self._moved(images, labels, numbers, radius) if radius else images
        return [self._is_wrong(*each) for each in zip(moved, labels.tolist(), numbers, strict=True)]

    def _moved(self, images: Tensor, labels: Tensor, numbers: list[int], radius: float) -> Tensor:
        """Within the radius; of 8 bits, too, where the noise is of whole levels."""
        smoothed, ids = self.smoothed, [self.first + number for number in numbers]
        keys = [[sample * DRAWS + draw for draw in range(GRADIENT_DRAWS)] for sample in ids]
        noise = torch.stack(
            [smoothed.noisy(image, FOLLOWED, each) - image for image, each in zip(images, keys, strict=True)]
        )
        spec = AttackSpec("pgd", "L2", radius, radius / 4, STEPS, random_start=False, targeted=False)
        with reseeded(smoothed.protection, smoothed.seed, self.first):
            moved = attack(NoisyProbabilities(self.model, noise).eval(), images, labels, spec, ids, smoothed.seed)
        if smoothed.is_integer:
            levels = (images * 255).round().to(torch.uint8)
            moved = quantise(moved, levels, "L2", radius).float() / 255
        check_budget(Task("certified", SMOOTHED_ATTACK, "L2", radius, 0, self.first, len(images)), moved, images)
        return moved

    def _is_wrong(self, image: Tensor, label: int, number: int) -> bool:
        """Whether another class is shown to be the more probable one, at level alpha (Cohen's PREDICT)."""
        settings = self.smoothed.settings
        votes = self.smoothed.votes(image, self.first + number, JUDGED, settings.attack_draws)
        top, right = int(votes.argmax()), int(votes[label])
        if top == label:
            return False
        most = int(votes[top])
        return bool(stats.binomtest(most, most + right, 0.5).pvalue <= settings.alpha)


@dataclass(frozen=True)
class PlainAttack:
    """An attack of the catalogue on f∘P. model: what is followed and asked; seed: of the attack."""

    model: nn.Module
    name: str
    first: int
    seed: int

    def __call__(self, images: Tensor, labels: Tensor, numbers: list[int], radius: float) -> list[bool]:
        """As `falls` asks it."""
        if not radius:
            with torch.no_grad(), reseeded(self.model, self.seed):
                return (self.model(images).argmax(1) != labels).tolist()
        ids = [self.first + number for number in numbers]
        state = NamedAttack(self.name, "L2", radius).run(
            self.model, images, labels, keys=ids, seed=self.seed, batch_size=len(images)
        )
        check_budget(Task("adaptive", self.name, "L2", radius, 0, self.first, len(images)), state.images, images)
        return [not stood for stood in state.robust.tolist()]


@dataclass(frozen=True)
class AttackUnit:
    """One record to be made. directory: of the purifier's records; chunk: images and labels by their numbers."""

    defense: Defense
    identity: CertifyIdentity
    directory: Path
    task: AttackTask
    chunk: Callable[[range], tuple[Tensor, Tensor]]

    @property
    def path(self) -> Path:
        """Of the record."""
        return self.directory / self.task.path

    @property
    def _identity(self) -> str:
        return digest(attack_facts(self.identity, self.task))

    @property
    def name(self) -> str:
        """Of its claim; records of different run directories are different units."""
        return "attacked-" + digest([str(self.path.resolve()), self._identity])[:24]

    def is_done(self) -> bool:
        """Whether the record is there."""
        return read_attacked(self.path, self._identity) is not None

    def make(self) -> AttackedRecord:
        """Attack the chunk's images, and write down what became of them."""
        started, settings = time.perf_counter(), self.identity.settings
        images, labels = self.chunk(self.task.ids)
        labels = labels.to(images.device)
        found = falls(images, labels, radii_of(settings), self._attack(images))
        parts = zip(self.task.ids, labels.tolist(), found, image_keys(images), strict=True)
        record = AttackedRecord(
            identity=self._identity, depends_on=attack_facts(self.identity, self.task),
            attack=settings.attack if self.task.sigma is None else SMOOTHED_ATTACK, sigma=self.task.sigma,
            radii=radii_of(settings), chunk=self.task.chunk, attacked=tuple(AttackedImage(*part) for part in parts),
            seconds=round(time.perf_counter() - started, 3),
        )  # fmt: skip
        record.write(self.path)
        return record

    def _attack(self, images: Tensor) -> Turned:
        settings, defense = self.identity.settings, self.defense
        model = Targets(defense, EvaluationSettings(), images[:1]).exact(Adaptive())
        if self.task.sigma is None:
            seed = int(keyed_rng("certify-attack", self.identity.seed, self.task.chunk).integers(2**31))
            return PlainAttack(model, settings.attack, self.task.first, seed)
        smoothed = Smoothed(
            defense.purified_classifier, defense.protection, settings, self.task.sigma, self.identity.seed
        )
        return SmoothedAttack(model, smoothed, self.task.first)
