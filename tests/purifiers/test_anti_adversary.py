"""Anti-Adv: the authors' steps, its gradient, and what is left of it: an oblivious attack sees the bare classifier."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack
from maep.config.load import load_settings
from maep.evaluation.scoring.defense import Defense
from maep.models.classifiers import Normalized
from maep.purifiers.anti_adversary import AntiAdversary, AntiAdversaryPurifier, AntiAdversarySettings
from maep.runtime.errors import UserError
from tests.small import digits, train_small

CLASSIFIER = train_small()


def images(count: int = 6) -> Tensor:
    return digits()[0][:count]


def test_it_takes_the_authors_steps() -> None:
    """k signed steps of the batch-mean cross-entropy towards the first prediction, unclipped, as published."""
    x, settings = images(), AntiAdversarySettings(steps=3, step=0.1)
    labels, moved = CLASSIFIER(x).argmax(1), x.clone()
    for _ in range(3):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(CLASSIFIER(moved), labels), moved)
        moved = (moved - 0.1 * gradient.sign()).detach()
    defended = AntiAdversary(CLASSIFIER, settings)
    torch.testing.assert_close(defended.moved(x), moved)
    torch.testing.assert_close(defended(x), CLASSIFIER(moved))
    assert not 0 <= moved.min() <= moved.max() <= 1
    confidences = [F.softmax(each(x), 1).gather(1, labels[:, None]).mean() for each in (defended, CLASSIFIER)]
    assert confidences[0] > confidences[1]


def test_it_moves_images_where_a_caller_derives_nothing() -> None:
    """In torch.inference_mode, whose tensors autograd refuses, to the same bits."""
    defended = AntiAdversary(CLASSIFIER, AntiAdversarySettings())
    expected = defended(images())
    with torch.inference_mode():
        assert torch.equal(defended(images()), expected)


def test_no_steps_are_the_classifier() -> None:
    """k = 0, or steps of 0."""
    for settings in (AntiAdversarySettings(steps=0), AntiAdversarySettings(step=0.0)):
        assert torch.equal(AntiAdversary(CLASSIFIER, settings)(images()), CLASSIFIER(images()))


def test_the_gradient_is_the_classifiers_at_the_moved_point() -> None:
    """Exact, since the shift is constant almost everywhere; also where gradients are switched off around it."""
    defended, x = AntiAdversary(CLASSIFIER, AntiAdversarySettings()), images().requires_grad_()
    (gradient,) = torch.autograd.grad(defended(x)[:, 3].sum(), x)
    at = defended.moved(images()).requires_grad_()
    (expected,) = torch.autograd.grad(CLASSIFIER(at)[:, 3].sum(), at)
    assert torch.equal(gradient, expected)
    with torch.no_grad():
        assert torch.equal(defended(images()), defended(x.detach()))


def test_a_step_in_the_normalised_input() -> None:
    """It is a deviation of each channel as large; a classifier that has none is refused, and so is no classifier."""
    settings = AntiAdversarySettings(steps=1, scale="normalized")
    moved = AntiAdversary(Normalized(CLASSIFIER, [0.0] * 3, [0.5, 1.0, 2.0]), settings).moved(images())
    shift = (moved - images()).abs()
    torch.testing.assert_close(shift.amax((0, 2, 3)), 0.15 * torch.tensor([0.5, 1.0, 2.0]))
    with pytest.raises(UserError, match=r"scale=normalized: the classifier says no `std`"):
        AntiAdversaryPurifier(settings).attach(CLASSIFIER)
    with pytest.raises(UserError, match="asks a classifier: attach one"):
        AntiAdversaryPurifier(AntiAdversarySettings())(images())


def test_clamp_keeps_pixels() -> None:
    """Our variant is a map of images, and its logits are those of its picture."""
    purifier = AntiAdversaryPurifier(AntiAdversarySettings(clamp=True))
    purifier.attach(CLASSIFIER)
    assert torch.equal(CLASSIFIER(purifier(images())), purifier.defended(CLASSIFIER)(images()))


def test_who_attacks_the_bare_classifier_finds_it_as_robust_as_ever() -> None:
    """What fools it is moved on towards the wrong label, so hardly an answer changes; who follows the layer is led to
    worse images than without it (Croce et al. 2022).
    """
    x, labels = images(100), digits()[1][:100]
    defended = AntiAdversary(CLASSIFIER, AntiAdversarySettings()).eval()
    spec = AttackSpec("pgd", "Linf", 0.1, 0.025, 10, True, False)

    def against(target: nn.Module, judged: nn.Module) -> Tensor:
        attacked = attack(target, x, labels, spec, range(100), 0)
        return judged(attacked).argmax(1) == labels

    bare, transferred, direct = (
        against(CLASSIFIER, CLASSIFIER), against(CLASSIFIER, defended), against(defended, defended)
    )  # fmt: skip
    assert 0.02 < bare.float().mean() < 0.6
    assert (transferred != bare).float().mean() <= 0.03
    assert direct.sum() > bare.sum() + 10


def test_attackers_are_given_what_they_know() -> None:
    """Oblivious: the classifier itself; bpda and adaptive: the defense. The classifier is no part of the purifier."""
    purifier = AntiAdversaryPurifier.from_settings(load_settings(None, ["purifier.kind=anti_adversary"]))
    defense = Defense.of(purifier, CLASSIFIER, "a", "c")
    assert defense.defended is not None
    assert defense.defended.target("oblivious") is CLASSIFIER
    assert defense.defended.target("bpda") is defense.defended.target("adaptive") is defense.defended
    assert defense.purified_classifier is defense.defended
    assert purifier.weights() == {}
