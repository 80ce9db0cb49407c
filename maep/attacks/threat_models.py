"""What an attacker knows, as the model that an attack is given."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maep.attacks.reseeding import can_reseed_each, reseed, reseed_each
from maep.config.implementations import THREAT_MODELS, implementation
from maep.models.defended import DefendedClassifier
from maep.runtime.console import say
from maep.runtime.device import fork_rng
from maep.runtime.errors import fail
from maep.runtime.recomputation import ComputedTwice


class ThreatModel(Protocol):
    """One answer to the question what the attacker knows; the docstring of each class is that answer.

    name: as in reports. uses_purifier: whether the adversarial images depend on the purifier; where they do
    not, they are made once and every purifier is judged on them. knows_purifier: whether its weights are known.
    """

    name: str
    uses_purifier: bool
    knows_purifier: bool

    def target(self, purifier: nn.Module, classifier: nn.Module, draws: int) -> nn.Module:
        """The model that the attacker is given: [N, 3, H, W] in [0,1] → logits. draws: of a random purifier."""
        ...


class Oblivious:
    """The attacker knows the classifier f, weights and gradients, but not that a purifier P stands before it.

    The attack follows f alone; the images it makes are then purified and classified. This is the setting of the
    paper's tables. It says nothing about an attacker who knows the purifier.
    """

    name = "oblivious"
    uses_purifier = knows_purifier = False

    def target(self, purifier: nn.Module, classifier: nn.Module, draws: int) -> nn.Module:
        """f."""
        return classifier


class Twin:
    """The attacker knows the classifier f and how the purifier P was made, but not the weights that came of it.

    He has trained one of the same kind himself, a twin of other seed or other images (evaluation.twin), and follows all
    of f∘twin with exact gradients; what fools it is then purified by P (transfer, Papernot et al. 2017). If he does
    better than the adaptive attacker, the purifier's own gradients are masked.
    """

    name = "twin"
    uses_purifier, knows_purifier = True, False

    def target(self, purifier: nn.Module, classifier: nn.Module, draws: int) -> nn.Module:
        """f∘twin, of the twin, which is handed over in P's place."""
        return Adaptive().target(purifier, classifier, draws)


class Bpda:
    """The attacker knows classifier and purifier, but cannot or does not differentiate through the purifier.

    BPDA (Athalye et al. 2018): forward the attack sees f(P(x)), backward it takes P for the identity. It breaks
    purifiers that hide their gradients; where gradients through P can be had, the adaptive attacker is the stronger.
    """

    name = "bpda"
    uses_purifier = knows_purifier = True

    def target(self, purifier: nn.Module, classifier: nn.Module, draws: int) -> nn.Module:
        """f∘P whose gradient is that of f at P(x)."""
        return nn.Sequential(StraightThrough(purifier), classifier).eval()


class BpdaIntermediate:
    """The attacker knows everything, but cannot or does not differentiate through the purifier, which works in steps.

    BPDA at intermediate points: forward the attack sees f(P(x)), backward it takes the mean of f's gradients at P(x)
    and at the images that the steps went through, each for the identity. It broke SOAP (Croce et al. 2022). A purifier
    that shows no such images is attacked as by BPDA.
    """

    name = "bpda-intermediate"
    uses_purifier = knows_purifier = True

    def target(self, purifier: nn.Module, classifier: nn.Module, draws: int) -> nn.Module:
        """f∘P whose gradient is the mean of f's at the images of `maep.purifiers.base.Purifier.path`."""
        return MeanGradient(purifier, classifier).eval()


class AuxiliaryAware:
    """The attacker knows everything, and of a purifier that descends a loss of its own he descends that loss, too.

    So his images leave nothing to purify (Shi et al. 2021, of SOAP; Tsai et al. 2023, of DRAM). He follows BPDA's
    gradient less evaluation.auxiliary_weight times that of the loss, for attacks that raise the classifier's loss. A
    purifier without such a loss is attacked as by BPDA.
    """

    name = "auxiliary-aware"
    uses_purifier = knows_purifier = True

    def target(self, purifier: nn.Module, classifier: nn.Module, draws: int) -> nn.Module:
        """f∘P whose gradient is BPDA's less the weighted one of `maep.purifiers.base.Purifier.auxiliary_loss`."""
        return LessAuxiliaryLoss(purifier, Bpda().target(purifier, classifier, draws)).eval()


class Adaptive:
    """The attacker knows everything: classifier f and purifier P, weights and gradients of both.

    The attack follows all of f∘P with exact gradients through the purifier, at the same budget; a purifier that says
    that it has none of use is taken for the identity backward (BPDA). A defense is worth what is left here.
    """

    name = "adaptive"
    uses_purifier = knows_purifier = True

    def target(self, purifier: nn.Module, classifier: nn.Module, draws: int) -> nn.Module:
        """f∘P."""
        return nn.Sequential(purifier, classifier).eval()


class Surrogate:
    """The attacker knows everything, but follows a purifier of fewer steps than the one that purifies.

    So published attacks on purifiers of many steps save time and memory, and so their numbers come out too good
    (Lee and Kim 2023; Kassis et al. 2025). What fools the short one is then purified by the whole. A purifier without
    steps to leave out is its own surrogate: then this is the adaptive attacker.
    """

    name = "surrogate"
    uses_purifier = knows_purifier = True

    def target(self, purifier: nn.Module, classifier: nn.Module, draws: int) -> nn.Module:
        """f∘P, of a P that is handed over with its steps left out (`maep.purifiers.base.Purifier.shortened`)."""
        return Adaptive().target(purifier, classifier, draws)


class AdaptiveEot:
    """The attacker knows everything, and averages over the purifier's random masks or noise.

    EOT (Athalye et al. 2018): the attack follows the expected logits of f∘P over several draws, and its gradient.
    A purifier that draws nothing is its own expectation: then this is the adaptive attacker.
    """

    name = "adaptive-eot"
    uses_purifier = knows_purifier = True

    def target(self, purifier: nn.Module, classifier: nn.Module, draws: int) -> nn.Module:
        """E[f∘P] over `draws` draws."""
        purified_classifier = nn.Sequential(purifier, classifier).eval()
        return Expectation(purified_classifier, draws).eval() if draws > 1 else purified_classifier


class BlackBox:
    """The attacker knows nothing of classifier and purifier, but may ask f∘P for its logits many times.

    The attack is Square (Andriushchenko et al. 2020), a random search that needs no gradients. If it does better
    than the adaptive attacker, the purifier's gradients are masked and the adaptive numbers are too good. Of a random
    purifier it may ask for several draws (evaluation.blackbox_draws), each a question more, and lower the mean of
    their margins.
    """

    name = "blackbox"
    uses_purifier, knows_purifier = True, False

    def target(self, purifier: nn.Module, classifier: nn.Module, draws: int) -> nn.Module:
        """f∘P, or E[f∘P] over `draws` draws, which Square only asks for logits: those of each draw."""
        return asked_draw_by_draw(AdaptiveEot().target(purifier, classifier, draws))


class StraightThrough(nn.Module):
    """A purifier whose gradient is taken for the identity's: forward P(x), backward the gradient as it comes."""

    def __init__(self, purifier: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier

    def forward(self, images: Tensor) -> Tensor:
        """Purified images, same shape."""
        with torch.no_grad():
            purified = self.purifier(images)
        return _IdentityBackward.apply(images, purified)


class _IdentityBackward(torch.autograd.Function):
    """(images, purified) → purified, its gradient handed to images as it is."""

    @staticmethod
    def forward(context: Any, images: Tensor, purified: Tensor) -> Tensor:
        return purified.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class MeanGradient(nn.Module):
    """f∘P; backward the logits' gradient goes through f at every image of P's path, and their mean to the images.

    purifier: has `path`, as `maep.purifiers.base.Purifier`; classifier: f. What f computed is computed again backward,
    at one image of the path after another: of many, the activations would not fit.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.purifier, self.classifier = purifier, classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] of the purified images."""
        with torch.no_grad():
            *before, purified = self.purifier.path(images)  # type: ignore[operator]
        if not (torch.is_grad_enabled() and images.requires_grad):
            return self.classifier(purified)
        logits = [
            checkpoint(self.classifier, _IdentityBackward.apply(images, point), use_reentrant=False)
            for point in (purified, *before)
        ]
        mean = torch.stack(logits).mean(0)
        return logits[0].detach() + (mean - mean.detach())


class LessAuxiliaryLoss(nn.Module):
    """A model of a purifier; whatever loss of its logits is followed, `weight` times the purifier's own is taken off.

    purifier: has `auxiliary_loss`, as `maep.purifiers.base.Purifier`. The logits are the model's.
    """

    def __init__(self, purifier: nn.Module, model: nn.Module, weight: float = 1.0) -> None:
        super().__init__()
        self.purifier, self.model, self.weight = purifier, model, weight

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C]."""
        logits: Tensor = self.model(images)
        if torch.is_grad_enabled() and images.requires_grad:
            loss = self.purifier.auxiliary_loss(images)  # type: ignore[operator]
            logits = _LessLoss.apply(logits, self.weight * loss.sum())
        return logits


class _LessLoss(torch.autograd.Function):
    """(logits, a loss) → logits; backward the loss's gradient is -1, whatever theirs is."""

    @staticmethod
    def forward(context: Any, logits: Tensor, loss: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.new_tensor(-1.0)


class ZeroGradient(nn.Module):
    """A model that autograd cannot see through, with a gradient of zeros in place of none."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C]."""
        logits = self.model(images)
        if images.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            logits = logits + 0 * images.flatten(1).sum(1, keepdim=True)
        return logits


class Expectation(nn.Module):
    """Mean logits over `draws` answers of a random model; each answer's activations are computed again backward.

    What the draws are is a function of the key it was reseeded with and of the number of calls since. at_once: how many
    are computed as one batch where the model can; they are the same, but sums may then differ in their last bits.
    """

    def __init__(self, model: nn.Module, draws: int, at_once: int = 1) -> None:
        super().__init__()
        self.model, self.draws, self.at_once = model, draws, at_once
        self.is_asked_draw_by_draw = False  # of an attack with a loss of its own for each draw, as Square has
        self._key: tuple[int, ...] = (0,)
        self._calls = 0
        self._is_checked = False

    def reseed(self, *key: int) -> None:
        """Start again at `key`."""
        self._key, self._calls = key, 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C]."""
        return self.each(images).mean(0)

    def each(self, images: Tensor) -> Tensor:
        """Logits [draws, N, C]."""
        self._calls += 1
        keys = [(*self._key, self._calls, number) for number in range(self.draws)]
        if self.at_once > 1 and not self._is_checked:
            self._check(images.detach(), keys[: self.at_once])
        groups = [keys[first : first + self.at_once] for first in range(0, self.draws, self.at_once)]
        return torch.cat([self._answers(images, group) for group in groups])

    def _answers(self, images: Tensor, keys: Sequence[tuple[int, ...]]) -> Tensor:
        """Logits [K, N, C] of K draws."""
        if torch.is_grad_enabled() and images.requires_grad:
            twice = ComputedTwice(), ComputedTwice()
            return checkpoint(self._drawn, images, keys, use_reentrant=False, context_fn=lambda: twice)
        return self._drawn(images, keys)

    def _drawn(self, images: Tensor, keys: Sequence[tuple[int, ...]]) -> Tensor:
        if len(keys) == 1:
            reseed(self.model, *keys[0])
            return self.model(images)[None]
        reseed_each(self.model, keys)
        return self.model(images.repeat(len(keys), 1, 1, 1)).unflatten(0, (len(keys), len(images)))

    @torch.no_grad()
    def _check(self, images: Tensor, keys: Sequence[tuple[int, ...]]) -> None:
        """Compute draws one by one from now on if a batch of them gives others, as of a model that draws from torch."""
        self._is_checked = True
        equal = can_reseed_each(self.model)
        if equal:
            with fork_rng(self.model):
                alone = torch.cat([self._drawn(images, [key]) for key in keys])
                equal = torch.allclose(self._drawn(images, keys), alone, rtol=1e-3, atol=1e-3)
        if not equal:
            self.at_once = 1
            say("evaluation.draws_at_once: this defense draws in a way of its own; its draws are computed one by one")


def asked_draw_by_draw(model: nn.Module) -> nn.Module:
    """The same model; if it averages over draws, an attack that takes a loss of logits takes the mean of the draws'."""
    if isinstance(model, Expectation):
        model.is_asked_draw_by_draw = True
    return model


def target_of_defended(attacker: ThreatModel, defended: DefendedClassifier, draws: int) -> nn.Module:
    """What an attacker is given of a defense that is no purifier: what the defense says of itself.

    draws: over which AdaptiveEot and BlackBox average its logits. Returns [N, 3, H, W] in [0,1] → logits.
    """
    target = defended.target(attacker.name)
    averages = attacker.name in (AdaptiveEot.name, BlackBox.name) and draws > 1
    if not averages:
        return target
    expectation = Expectation(target, draws).eval()
    return asked_draw_by_draw(expectation) if attacker.name == BlackBox.name else expectation


def threat_model(name: str) -> ThreatModel:
    """The threat model of that name. Raises UserError with the valid names."""
    if name not in THREAT_MODELS:
        fail(f"evaluation.threat_models: {name}: choose one of {', '.join(THREAT_MODELS)}")
    model: ThreatModel = implementation(THREAT_MODELS[name])()
    return model
