"""What is evaluated, a purifier before a classifier or a defended classifier, and what attackers of it are given."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from maep.attacks.reseeding import is_random
from maep.attacks.threat_models import (
    AuxiliaryAware,
    BlackBox,
    BpdaIntermediate,
    Expectation,
    LessAuxiliaryLoss,
    StraightThrough,
    Surrogate,
    ThreatModel,
    Twin,
    ZeroGradient,
    target_of_defended,
)
from maep.config.evaluation_settings import EvaluationSettings
from maep.evaluation.scoring.reduced_model import SurrogateSettings
from maep.models.defended import DefendedClassifier
from maep.purifiers import Purifier

UNDEFENDED = "none"  # the name in reports of what purifies nothing

# Attackers who follow what a purifier shows of itself in place of its gradient.
FOLLOW_ITS_PARTS = (BpdaIntermediate.name, AuxiliaryAware.name)


@dataclass(frozen=True)
class Defense:
    """A purifier before a classifier, or a defended classifier; all are frozen and set to eval mode.

    purifier, classifier: modules on the device to compute on, [N, 3, H, W] in [0,1] → same, and → logits [N, C]. The
    identities are digests of all that the modules' outputs depend on. defended: in place of the two together, for a
    defense that is no map of images; purifier is the identity then, purifier_identity that of the defended classifier,
    classifier the undefended one. twin: another purifier, which an attacker follows who does not know this one, and
    twin_identity its digest.
    """

    purifier: nn.Module
    classifier: nn.Module
    purifier_identity: str
    classifier_identity: str
    defended: DefendedClassifier | None = None
    twin: Purifier | None = None
    twin_identity: str = ""

    def __post_init__(self) -> None:
        for module in (self.purifier, self.classifier, self.defended, self.twin):
            if module is not None:
                module.eval().requires_grad_(False)

    @classmethod
    def of(cls, purifier: Purifier, classifier: nn.Module, purifier_identity: str, classifier_identity: str) -> Self:
        """A kind of purifier before a classifier, which it is handed; a defended classifier, if the kind makes one."""
        purifier.attach(classifier)
        defended = purifier.defended(classifier)
        images = purifier if defended is None else nn.Identity()
        return cls(images, classifier, purifier_identity, classifier_identity, defended)

    @property
    def device(self) -> torch.device:
        """Where the classifier is, and so where everything is computed."""
        tensors = itertools.chain(self.classifier.parameters(), self.classifier.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @cached_property
    def purified_classifier(self) -> nn.Module:
        """f∘P, or the defended classifier: [N, 3, H, W] in [0,1] → logits [N, C]."""
        return nn.Sequential(self.purifier, self.classifier).eval() if self.defended is None else self.defended

    @property
    def protection(self) -> nn.Module:
        """The module that protects, and that may draw random numbers: the purifier, or the defended classifier."""
        return self.purifier if self.defended is None else self.defended

    @property
    def classifier_of_purified(self) -> nn.Module:
        """What classifies the images that the purifier gave: [N, 3, H, W] in [0,1] → logits [N, C]."""
        return self.classifier if self.defended is None else self.defended

    @property
    def is_approximated(self) -> bool:
        """Whether adaptive attackers take the purifier for the identity backward: it says that it has no gradient."""
        return _has_no_gradient(self.purifier)

    @property
    def says_random(self) -> bool:
        """Whether what protects says of itself that it draws: it may do so for some images alone."""
        protection = self.protection
        return isinstance(protection, Purifier | DefendedClassifier) and protection.is_random

    @property
    def is_undefended(self) -> bool:
        """Whether there is a classifier alone."""
        return self.defended is None and isinstance(self.purifier, nn.Identity)


def _has_no_gradient(purifier: nn.Module) -> bool:
    return isinstance(purifier, Purifier) and not purifier.is_differentiable


class Targets:
    """The models that attackers of a defense are given, and the surrogates that their attacks follow."""

    def __init__(self, defense: Defense, settings: EvaluationSettings, examples: Tensor) -> None:
        """examples: one or two images [K, 3, H, W] in [0,1], to ask the defense what it is like."""
        self.defense, self.examples = defense, examples
        self.draws, self.blackbox_draws = settings.draws, settings.blackbox_draws
        self.draws_at_once, self.surrogate_share = settings.draws_at_once, settings.surrogate_share
        self.auxiliary_weight = settings.auxiliary_weight
        self.surrogate_settings = SurrogateSettings.of(settings)

    @cached_property
    def is_random(self) -> bool:
        """Whether the purified classifier draws random numbers: it says so, or answers the examples in two ways."""
        return self.defense.says_random or is_random(self.defense.purified_classifier, self.examples)

    @property
    def has_surrogate(self) -> bool:
        """Whether the purifier has steps that the surrogate attacker leaves out."""
        return self._shortened(self.defense.purifier) is not self.defense.purifier

    @property
    def has_path(self) -> bool:
        """Whether the purifier shows the images that its steps go through."""
        return isinstance(self.defense.purifier, Purifier) and self.defense.purifier.has_path

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether the purifier descends a loss of its own, which an attacker may descend too."""
        return isinstance(self.defense.purifier, Purifier) and self.defense.purifier.has_auxiliary_loss

    def _shortened(self, purifier: nn.Module) -> nn.Module:
        return purifier.shortened(self.surrogate_share) if isinstance(purifier, Purifier) else purifier

    @cached_property
    def has_gradient(self) -> bool:
        """Whether the purified classifier's logits depend on the image as far as autograd can tell."""
        with torch.enable_grad():
            image = self.examples[:1].detach().clone().requires_grad_()
            return bool(self.defense.purified_classifier(image).requires_grad)

    @property
    def gives_gradient(self) -> bool:
        """Whether who follows all of the defense has its own gradient: neither zeros nor an approximation."""
        defended = self.defense.defended
        says_so = isinstance(defended, DefendedClassifier) and not defended.is_differentiable
        return self.has_gradient and not self.defense.is_approximated and not says_so

    def exact(self, attacker: ThreatModel, draws: int | None = None) -> nn.Module:
        """The model that an attacker attacks, [N, 3, H, W] in [0,1] → logits [N, C].

        draws: of a random purifier; default: as many as configured. A kind of purifier that says that it has no
        gradient is the identity backward; any other defense that gives none has one of zeros, so that gradient attacks
        can be run on it.
        """
        purifier = self._twin if attacker.name == Twin.name else self.defense.purifier
        return self._of(purifier, self.defense.classifier, self.defense.defended, attacker, draws)

    @property
    def _twin(self) -> Purifier:
        assert self.defense.twin is not None, "settings that name this attacker name a twin"
        return self.defense.twin

    def surrogate(self, attacker: ThreatModel) -> nn.Module | None:
        """What attacks follow instead of the exact model; None where they follow that itself."""
        if self.surrogate_settings.is_exact:
            return None
        purifier, classifier, defended = self._compiled_parts
        if attacker.name == Twin.name:
            purifier = self._compiled_twin
        return self.surrogate_settings.reduced(self._of(purifier, classifier, defended, attacker, None))

    @cached_property
    def _compiled_twin(self) -> Purifier:
        return self._twin.compiled() if self.surrogate_settings.compile else self._twin

    @cached_property
    def _compiled_parts(self) -> tuple[nn.Module, nn.Module, DefendedClassifier | None]:
        """Purifier, classifier and defended classifier as surrogates have them; compiled once for all threat models."""
        defended = self.defense.defended
        if defended is not None and self.surrogate_settings.compile:
            defended = defended.compiled()
        return *self.surrogate_settings.parts(self.defense.purifier, self.defense.classifier), defended

    def _of(
        self,
        purifier: nn.Module,
        classifier: nn.Module,
        defended: DefendedClassifier | None,
        attacker: ThreatModel,
        draws: int | None,
    ) -> nn.Module:
        draws = self._draws_of(attacker) if draws is None else draws
        if attacker.name == Surrogate.name:
            purifier = self._shortened(purifier)
        if _has_no_gradient(purifier) and attacker.name not in FOLLOW_ITS_PARTS:
            purifier = StraightThrough(purifier)
        if defended is None or not attacker.uses_purifier:
            model = attacker.target(purifier, classifier, draws)
        else:
            model = target_of_defended(attacker, defended, draws)
        if isinstance(model, LessAuxiliaryLoss):
            model.weight = self.auxiliary_weight
        if isinstance(model, Expectation):
            model.at_once = min(draws, self.draws_at_once)
        return model if self.has_gradient else ZeroGradient(model).eval()

    def _draws_of(self, attacker: ThreatModel) -> int:
        """Over how many an attacker averages, if it averages; one draw of what has no other."""
        if attacker.name == BlackBox.name:
            return self.blackbox_draws if self.blackbox_draws > 1 and self.is_random else 1
        return self.draws
