"""A defended classifier says what each attacker of it is given."""

import pytest
import torch
from torch import Tensor, nn

from maep.attacks.reseeding import reseed
from maep.attacks.threat_models import Expectation, target_of_defended, threat_model
from maep.models.defended import DefendedClassifier
from maep.runtime.randomness import keyed_rng

IMAGES = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval().requires_grad_(False)


class Levels(DefendedClassifier):
    """Classifies images of four levels; its approximation has the slope of a straight line."""

    is_differentiable = False

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier((images * 3).round() / 3)

    def approximation(self) -> nn.Module:
        return Straight(self.classifier)


class Straight(nn.Module):
    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images + ((images * 3).round() / 3 - images).detach())


class Dither(DefendedClassifier):
    """Classifies noisy images; what it draws is a function of its key."""

    is_random = True

    def reseed(self, *key: int) -> None:
        self.rng = keyed_rng("dither", *key)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images + torch.from_numpy(self.rng.standard_normal(images.shape)).to(images) / 10)


def test_oblivious_is_the_bare_classifier() -> None:
    """Whatever stands before it."""
    classifier = linear()
    assert target_of_defended(threat_model("oblivious"), Levels(classifier), 4) is classifier


@pytest.mark.parametrize("name", ["adaptive", "blackbox", "adaptive-eot"])
def test_the_defense_itself(name: str) -> None:
    """All who know it, or ask it, are given it as it is."""
    defended = Levels(linear())
    assert target_of_defended(threat_model(name), defended, 1) is defended


def test_bpda_is_the_approximation() -> None:
    """The defense's logits with another gradient; where none is given, the defense itself."""
    defended = Levels(linear())
    target = target_of_defended(threat_model("bpda"), defended, 1)
    images = IMAGES.clone().requires_grad_()
    torch.testing.assert_close(target(images), defended(IMAGES))
    assert torch.autograd.grad(target(images).logsumexp(1).sum(), images)[0].ne(0).any()
    assert not torch.autograd.grad(defended(images).logsumexp(1).sum(), images)[0].any()
    plain = Dither(linear())
    assert target_of_defended(threat_model("bpda"), plain, 1) is plain


def test_eot_averages_a_random_defense() -> None:
    """Over the draws that its key stands for."""
    defended = Dither(linear())
    target = target_of_defended(threat_model("adaptive-eot"), defended, 3)
    assert isinstance(target, Expectation)
    reseed(target, 7)
    mean = target(IMAGES)
    answers = []
    for number in range(3):
        defended.reseed(7, 1, number)
        answers.append(defended(IMAGES))
    assert torch.equal(mean, torch.stack(answers).mean(0))
    assert answers[0].ne(answers[1]).any()
