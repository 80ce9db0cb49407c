"""What it takes to ask a defense, and to attack it, counted by asking it once on zeros, as each attacker asks it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from maep.attacks.threat_models import AdaptiveEot, BlackBox, threat_model
from maep.config.schema import Settings
from maep.evaluation.scoring.defense import Defense, Targets
from maep.evaluation.scoring.identities import EvaluationIdentity
from maep.launch.estimate.attack_queries import Queries
from maep.launch.estimate.data_sizes import class_count, test_images
from maep.launch.estimate.training_count import random_images, random_purifier
from maep.models.classifiers import load_classifier
from maep.purifiers import load_purifier
from maep.purifiers.base import Purifier, TrainedPurifier
from maep.purifiers.denoising import DenoiserPurifier
from maep.purifiers.registry import purifier_class
from maep.runtime.operations import Operations, counted

IMAGES = 2  # that are asked about: more than one, so that a purifier which takes fewer at a time shows it
BOUNDS = {"batch_tiles": 1, "gradient_memory": 0}  # of a purifier's memory, each with the least that it takes
SHORT = (10, 20)  # steps of the purifiers that stand for one of many
DRAWS = 2  # that an attacker averages over when he is counted


@dataclass(frozen=True)
class Taken:
    """flops: of one image; launches: of a batch."""

    flops: float = 0.0
    launches: float = 0.0

    def __add__(self, other: "Taken") -> "Taken":
        return Taken(self.flops + other.flops, self.launches + other.launches)

    def times(self, number: float) -> "Taken":
        """So many of it."""
        return Taken(number * self.flops, number * self.launches)

    @classmethod
    def of(cls, operations: Operations) -> "Taken":
        """What was counted of `IMAGES` images."""
        return cls(operations.flops / IMAGES, operations.launches)


@dataclass(frozen=True)
class Asked:
    """What one question takes. answer: logits; gradient: logits and their gradient, with all that is computed again for
    it.
    """

    answer: Taken
    gradient: Taken = Taken()

    def times(self, number: float) -> "Asked":
        """So many of them at a time."""
        return Asked(self.answer.times(number), self.gradient.times(number))

    def by(self, queries: Queries) -> Taken:
        """What an attack takes that asks so often."""
        gradient = self.gradient if queries.backward else Taken()
        backward = Taken(gradient.flops - self.answer.flops, gradient.launches - self.answer.launches)
        return self.answer.times(queries.plain + queries.graphs) + backward.times(queries.backward)


class DefenseCount:
    """A configuration's defense with random weights, asked as an evaluation asks it, in batches of its size.

    What it takes is a line in the number of steps of a purifier that has many; then two short ones are asked.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        with torch.random.fork_rng(devices=[]), counted(dry=True):
            self.images = torch.rand(IMAGES, 3, *[settings.data.image_size] * 2)
            classifier = load_classifier(settings.classifier, class_count(settings), None)
            purifier = _purifier(settings, classifier)
            # Each with its weight in the sum that is said of the whole.
            self._variants = [(part, self._targets(each, classifier)) for part, each in _line(purifier)]
            with torch.no_grad():  # what is found out at the first question is asked once
                self._variants[-1][1].defense.purified_classifier(self.images)
        self.defense = self._variants[0][1].defense
        self._asked: dict[str, Asked] = {}

    def _targets(self, purifier: Purifier, classifier: nn.Module) -> Targets:
        evaluation = replace(self.settings.evaluation, precision="fp32", compile=False, draws_at_once=1)
        defense = Defense.of(purifier, classifier, "", "")
        # The twin is another training of the same, and takes as much.
        return Targets(replace(defense, twin=purifier), evaluation, self.images)

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers."""
        return self.defense.says_random

    @cached_property
    def identity(self) -> EvaluationIdentity:
        """What says which attackers of this defense are the same."""
        return EvaluationIdentity(
            self.settings.evaluation, self.settings.run.seed, "", "", "", test_images(self.settings), self.is_random,
            self.defense.is_undefended, self.defense.is_approximated, self._variants[0][1].has_surrogate,
            has_path=self._variants[0][1].has_path, has_auxiliary_loss=self._variants[0][1].has_auxiliary_loss,
        )  # fmt: skip

    @cached_property
    def purify(self) -> Taken:
        """Purifying an image; of a defense that is no map of images nothing, and `classify` all of it."""
        return self._sum([self._plain(targets.defense.purifier) for _, targets in self._variants])

    @cached_property
    def classify(self) -> Taken:
        """Classifying an image that was purified."""
        return self._plain(self.defense.classifier_of_purified)

    @cached_property
    def undefended(self) -> Taken:
        """Classifying an image without a defense."""
        return self._plain(self.defense.classifier)

    def asked(self, threat: str) -> Asked:
        """What one question takes of what an attacker of this threat model is given; of Square's, the answer alone."""
        if threat not in self._asked:
            self._asked[threat] = self._count(threat)
        return self._asked[threat]

    def _count(self, threat: str) -> Asked:
        evaluation = self.settings.evaluation
        if threat == BlackBox.name:
            draws = evaluation.blackbox_draws if self.is_random else 1
            return Asked((self.purify + self.classify).times(draws))
        draws = evaluation.draws if threat == AdaptiveEot.name and self.is_random else 1
        count = min(draws, DRAWS)
        models = [targets.exact(threat_model(threat), count) for _, targets in self._variants]
        forward, backward = zip(*map(self._with_gradient, models), strict=True)
        answer = self._sum(forward)
        return Asked(answer, answer + self._sum(backward)).times(draws / count)

    def _with_gradient(self, model: nn.Module) -> tuple[Taken, Taken]:
        """Forward, and backward to the images."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            images = self.images.clone().requires_grad_()
            with counted(dry=True) as forward:
                logits: Tensor = model(images)
            with counted(dry=True) as backward:
                torch.autograd.grad(logits.sum(), images)
        return Taken.of(forward), Taken.of(backward)

    @torch.no_grad()
    def _plain(self, model: nn.Module) -> Taken:
        with torch.random.fork_rng(devices=[]), counted(dry=True) as operations:
            model(self.images)
        return Taken.of(operations)

    def _sum(self, counts: Sequence[Taken]) -> Taken:
        """Of the variants, by their weights."""
        parts = [count.times(part) for count, (part, _) in zip(counts, self._variants, strict=True)]
        return sum(parts, Taken())


def _line(purifier: Purifier) -> list[tuple[float, Purifier]]:
    """The purifier; in the place of one of many steps two of few, with weights that lead along their line to it."""
    steps = purifier.network.steps if isinstance(purifier, DenoiserPurifier) else 0
    few, more = SHORT
    if steps <= 2 * more:
        return [(1.0, purifier)]
    weight = (steps - more) / (more - few)
    return [(1 + weight, _short(purifier, more / steps)), (-weight, _short(purifier, few / steps))]


def _short(purifier: Purifier, share: float) -> Purifier:
    """With that share of its steps, and of the memory that is theirs."""
    assert isinstance(purifier, DenoiserPurifier)
    memory = int(share * purifier.settings.gradient_memory)
    return purifier.shortened(share).with_options(replace(purifier.settings, gradient_memory=memory))


def _purifier(settings: Settings, classifier: nn.Module) -> Purifier:
    """The one that is judged, or one like it with random weights; of its memory, the share that these images have of a
    batch.
    """
    given, kind = settings.evaluation.purifier, purifier_class(settings.purifier.kind)
    if given:
        purifier = load_purifier(given)
        return purifier.used_as(_bounded(settings, type(purifier)), given)
    settings = _bounded(settings, kind)
    if not issubclass(kind, TrainedPurifier):
        return kind.from_settings(settings)
    untrained = random_purifier(settings, [classifier])
    return untrained.calibrated(lambda count: random_images(settings, count))


def _bounded(settings: Settings, kind: type[Purifier]) -> Settings:
    share, purify = IMAGES / settings.evaluation.batch_size, settings.purify
    parts = {name: max(least, int(share * getattr(purify, name))) for name, least in BOUNDS.items()}
    heeded = {name: part for name, part in parts.items() if name in kind.options}
    return replace(settings, purify=replace(purify, **heeded))
