"""What a surrogate of the model says decides nothing, and shields no image from being attacked."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from maep.attacks.attack_state import AttackState
from maep.attacks.autoattack import AttackSuite, autoattack
from maep.attacks.catalog import NamedAttack
from maep.evaluation.scoring.reduced_model import SurrogateSettings
from tests.small import digits, train_small

Attack = Callable[[nn.Module, Tensor, Tensor, float, nn.Module | None], AttackState]


def pgd(model: nn.Module, images: Tensor, labels: Tensor, eps: float, surrogate: nn.Module | None) -> AttackState:
    keys = range(len(images))
    return NamedAttack("pgd-5", "Linf", eps).run(
        model, images, labels, keys=keys, seed=0, batch_size=5, surrogate=surrogate
    )


def apgd(model: nn.Module, images: Tensor, labels: Tensor, eps: float, surrogate: nn.Module | None) -> AttackState:
    how = {"norm": "Linf", "seed": 0, "batch_size": 5, "suite": AttackSuite("custom", ("apgd-ce",))}
    return autoattack(model, images, labels, eps=eps, surrogate=surrogate, **how)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return train_small()


@pytest.fixture(scope="module")
def surrogate(model: nn.Module) -> nn.Module:
    return SurrogateSettings("bf16").reduced(model)


@pytest.fixture(scope="module")
def between(model: nn.Module, surrogate: nn.Module) -> tuple[Tensor, Tensor]:
    """Images so near to the border of two classes that bf16 errs and fp32 does not; their labels."""
    images, labels = digits()
    correct = model(images).argmax(1) == labels
    near, truth = images[correct][:1000], labels[correct][:1000]
    far = near.flip(0)
    for _ in range(20):
        middle = (near + far) / 2
        inside = (model(middle).argmax(1) == truth)[:, None, None, None]
        near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
    fooled = (surrogate(near).argmax(1) != truth) & (model(near).argmax(1) == truth)
    assert fooled.sum() >= 10
    return near[fooled][:10], truth[fooled][:10]


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_fooling_the_surrogate_alone_is_no_success(
    attack: Attack, model: nn.Module, surrogate: nn.Module, between: tuple[Tensor, Tensor]
) -> None:
    """Without a budget the surrogate errs on every image and the model on none: all are robust."""
    images, labels = between
    state = attack(model, images, labels, 0.0, surrogate)
    assert (surrogate(state.images).argmax(1) != labels).any()
    assert state.robust.all()
    assert state.predictions.equal(labels)
    assert set(state.survivors.values()) == {10}


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_an_error_of_the_surrogate_shields_no_image(
    attack: Attack, model: nn.Module, surrogate: nn.Module, between: tuple[Tensor, Tensor]
) -> None:
    """An attack that finds an image broken already, in bf16, leaves it as it is: the model itself is attacked then."""
    images, labels = between
    state = attack(model, images, labels, 0.02, surrogate)
    assert not state.robust.any()
    assert (model(state.images).argmax(1) != labels).all()
    assert state.predictions.equal(model(state.images).argmax(1))


def test_the_surrogate_is_followed(model: nn.Module, surrogate: nn.Module) -> None:
    """Where both agree, the images are those that the surrogate's gradients lead to, not the model's."""
    images, labels = digits()[0][:20], digits()[1][:20]
    state = pgd(model, images, labels, 0.2, surrogate)
    assert not state.robust.any()
    assert state.images.equal(pgd(surrogate, images, labels, 0.2, None).images)
    assert not state.images.equal(pgd(model, images, labels, 0.2, None).images)
