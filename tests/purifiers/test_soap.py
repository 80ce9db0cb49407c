"""SOAP: the published steps and second view, a radius for each image, its gradient, and who must be told apart."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.gradient import attack
from maep.attacks.threat_models import Adaptive, AdaptiveEot, AuxiliaryAware, Bpda, BpdaIntermediate
from maep.config.evaluation_settings import EvaluationSettings
from maep.config.load import load_settings
from maep.evaluation.scoring.defense import Defense, Targets
from maep.evaluation.scoring.identities import EvaluationIdentity
from maep.evaluation.scoring.tasks import Task
from maep.purifiers.soap import SoapPurifier, SoapSettings, second_view
from maep.runtime.errors import UserError
from tests.small import digits, train_small

CLASSIFIER = train_small()
UNIT = 8 / 255


def images(count: int = 6) -> Tensor:
    """Digits with noise, so that classifier and view disagree."""
    noise = torch.randn((count, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return (digits()[0][:count] + 0.1 * noise).clamp(0, 1)


def soap(**values: float) -> SoapPurifier:
    purifier = SoapPurifier(SoapSettings(**{"unit": UNIT, "step": UNIT, **values}))  # type: ignore[arg-type]
    purifier.attach(CLASSIFIER)
    return purifier


def disagreement(image: Tensor) -> Tensor:
    """Of one image [1, 3, 16, 16], as published, with pixels picked by hand."""
    picked = [1 + (index * 14) // 16 for index in range(16)]
    view = torch.stack([image[:, :, :, 15 - column] for column in picked], 3)
    return F.mse_loss(CLASSIFIER(image), CLASSIFIER(view[:, :, picked]))


def literal(image: Tensor, radii: int, steps: int) -> tuple[Tensor, int]:
    """One image purified as the paper says it, and the number of the radius."""
    shifts = []
    for number in range(radii + 1):
        shift = torch.zeros_like(image)
        for _ in range(steps):
            at = (image + shift).requires_grad_()
            (gradient,) = torch.autograd.grad(disagreement(at), at)
            shift = (shift - UNIT * gradient.sign()).clamp(-number * UNIT, number * UNIT)
        shifts.append(shift)
    losses = [float(disagreement((image + shift).clamp(0, 1))) for shift in shifts]
    best = losses.index(min(losses))
    return (image + shifts[best]).clamp(0, 1), best


def test_the_second_view_is_cifars() -> None:
    """32 pixels: mirrored, [2:30, 2:30], nearest; other sizes lose the same share, and a line of pixels nothing."""
    x = torch.rand(1, 3, 32, 32)
    expected = F.interpolate(x.flip(3)[:, :, 2:30, 2:30], (32, 32), mode="nearest")
    assert torch.equal(second_view(x, True), expected)
    assert torch.equal(second_view(x, False), F.interpolate(x[:, :, 2:30, 2:30], (32, 32)))
    assert second_view(torch.rand(1, 3, 5, 1), False).shape == (1, 3, 5, 1)
    wide = torch.rand(1, 3, 224, 3)
    assert torch.equal(second_view(wide, True)[:, :, 0, 0], wide[:, :, 14, 1])


def test_each_image_takes_the_published_steps_and_its_own_radius() -> None:
    """As written out for one image after another; different images choose different radii."""
    results = [literal(image, 4, 4) for image in images().split(1)]
    assert len({best for _, best in results}) > 1
    purified = soap(radii=4, steps=4)(images())
    torch.testing.assert_close(purified, torch.cat([image for image, _ in results]))
    assert (purified - images()).abs().amax() <= 4 * UNIT + 1e-6


def test_its_path_is_what_the_radii_give() -> None:
    """Each of them, and last what is returned, which is one of them or the image; without radii that alone."""
    purifier = soap(radii=3)
    path, purified = purifier.path(images()), purifier(images())
    assert len(path) == 4
    assert torch.equal(path[-1], purified)
    for number, within in enumerate(path[:3], 1):
        assert 0 < (within - images()).abs().amax() <= number * UNIT + 1e-6
    for index, image in enumerate(purified):
        assert any(torch.equal(image, each[index]) for each in (images(), *path[:3]))
    assert [torch.equal(each, images()) for each in soap(radii=0).path(images())] == [True]


def test_who_follows_its_path_has_other_gradients() -> None:
    """The mean of the classifier's at all of it; BPDA's attacker has the purified point's. The logits are f∘P's."""
    purifier = soap(radii=2)
    targets = Targets(Defense.of(purifier, CLASSIFIER, "s", "c"), EvaluationSettings(), images(1))
    expected = torch.zeros_like(images())
    for point in purifier.path(images()):
        point.requires_grad_()
        expected += torch.autograd.grad(CLASSIFIER(point)[:, 3].sum(), point)[0] / 3
    x = images().requires_grad_()
    logits = targets.exact(BpdaIntermediate())(x)
    torch.testing.assert_close(logits, CLASSIFIER(purifier(images())))
    found = torch.autograd.grad(logits[:, 3].sum(), x)[0]
    torch.testing.assert_close(found, expected)
    assert targets.has_path
    assert not torch.allclose(found, torch.autograd.grad(targets.exact(Bpda())(x)[:, 3].sum(), x)[0])


def test_who_is_aware_of_its_loss_leaves_it_less_to_purify() -> None:
    """His images have less of it than BPDA's, the less the more it weighs; the weight is part of what attacks are."""
    purifier, x, labels = soap(radii=2), images(), digits()[1][:6]
    spec = AttackSpec(method="pgd", norm="Linf", eps=0.1, step=0.03, steps=6, random_start=False, targeted=False)
    losses = []
    for attacker, weight in ((Bpda(), 1.0), (AuxiliaryAware(), 1.0), (AuxiliaryAware(), 100.0)):
        settings = EvaluationSettings(auxiliary_weight=weight)
        targets = Targets(Defense.of(purifier, CLASSIFIER, "s", "c"), settings, images(1))
        attacked = attack(targets.exact(attacker), x, labels, spec, range(6), 0)
        losses.append(float(purifier.auxiliary_loss(attacked).sum()))
    assert losses[0] > losses[1] > losses[2]
    task = Task(AuxiliaryAware.name, "pgd-2", "Linf", 0.1, 0, 0, 9)
    facts = []
    for weight in (1.0, 2.0):
        settings = EvaluationSettings(auxiliary_weight=weight)
        identity = EvaluationIdentity(
            settings, 0, "c", "p", "i", 9, is_random=False, is_undefended=False, is_approximated=True,
            has_auxiliary_loss=True,
        )  # fmt: skip
        facts.append(identity.attack_facts(identity.attack_task(task)))
    assert facts[0] != facts[1]


@pytest.mark.parametrize("attacker", [BpdaIntermediate.name, AuxiliaryAware.name])
def test_who_is_shown_nothing_is_bpdas_attacker(attacker: str) -> None:
    """His attacks are BPDA's, not made a second time; where the purifier shows what he follows, they are his own."""
    for has_part in (False, True):
        identity = EvaluationIdentity(
            EvaluationSettings(), 0, "c", "p", "i", 9, is_random=False, is_undefended=False, has_path=has_part,
            has_auxiliary_loss=has_part,
        )  # fmt: skip
        task = identity.attack_task(Task(attacker, "pgd-2", "Linf", 0.1, 0, 0, 9))
        assert task.threat_model == (attacker if has_part else Bpda.name)


def test_the_loss_falls_and_no_radius_is_no_defense() -> None:
    """It is never more than the image's own; a picture is returned; of equal losses the image itself stays."""
    purifier = soap(radii=4)
    before, after = purifier.auxiliary_loss(images()), purifier.auxiliary_loss(purifier(images()))
    assert (after <= before + 1e-6).all()
    assert after.sum() < 0.7 * before.sum()
    assert torch.equal(soap(radii=0)(images()), images())
    constant = soap()
    constant.attach(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3).requires_grad_(False).apply(_zero)))
    assert torch.equal(constant(images()), images())


def _zero(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


def test_it_has_no_gradient_of_use_and_says_so() -> None:
    """Autograd sees a constant, since signs change within a quarter of an 8-bit level: what is removed jumps by whole
    steps. The same image comes out where gradients are switched off."""
    purifier, x = soap(radii=3), images().requires_grad_()
    purified = purifier(x)
    assert not purifier.is_differentiable
    assert not purified.requires_grad
    near = x.detach() + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign()
    removed, removed_near = purified - x.detach(), purifier(near) - near
    assert ((removed - removed_near).abs().flatten(1).amax(1) > UNIT / 2).sum() > len(x) // 2
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(purifier(images()), purified)


def test_adaptive_attackers_are_bpdas() -> None:
    """They are given f∘P with the gradient of f at the purified point, in place of zeros."""
    purifier = soap(radii=2)
    defense = Defense.of(purifier, CLASSIFIER, "s", "c")
    targets = Targets(defense, EvaluationSettings(), images(1))
    at = purifier(images()).requires_grad_()
    (expected,) = torch.autograd.grad(CLASSIFIER(at)[:, 3].sum(), at)
    for attacker in (Adaptive(), AdaptiveEot(), Bpda()):
        x = images().requires_grad_()
        logits = targets.exact(attacker)(x)
        torch.testing.assert_close(logits, CLASSIFIER(at))
        torch.testing.assert_close(torch.autograd.grad(logits[:, 3].sum(), x)[0], expected)


def test_a_batch_does_not_decide_an_images_radius() -> None:
    """The published code takes one radius for all of a batch, by its mean loss; here an image is alone."""
    together = soap()(images(24))
    singly = torch.cat([soap()(image) for image in images(24).split(1)])
    torch.testing.assert_close(together, singly, rtol=0, atol=1e-6)


def test_attackers_are_given_what_they_know_and_nobody_a_classifier() -> None:
    """f, and f∘P; a purifier without a classifier is refused; the classifier is no part of it, nor of its weights."""
    purifier = SoapPurifier.from_settings(load_settings(None, ["purifier.kind=soap"]))
    with pytest.raises(UserError, match="kind soap asks a classifier: attach one"):
        purifier(images())
    defense = Defense.of(purifier, CLASSIFIER, "s", "c")
    assert defense.purifier is purifier
    assert defense.defended is None
    assert torch.equal(defense.purified_classifier(images()), CLASSIFIER(purifier(images())))
    assert purifier.weights() == {}
    assert list(purifier.modules()) == [purifier]


@pytest.mark.parametrize("line", ["soap.step=0", "soap.unit=0", "soap.steps=0", "soap.radii=-1", "soap.unit=2"])
def test_bad_settings_are_refused(line: str) -> None:
    """By name."""
    with pytest.raises(UserError, match=rf"{line.split('=')[0].replace('.', '[.]')}="):
        load_settings(None, ["purifier.kind=soap", line])
