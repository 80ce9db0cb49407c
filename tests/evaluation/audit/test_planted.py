"""An attack finds the adversarial images that were planted for it, where it has gradients to follow, and only there."""

import pytest
import torch
from torch import nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.catalog import NamedAttack, gradient_spec
from maep.attacks.threat_models import ZeroGradient
from maep.evaluation.audit.planted import PlantedImages, border_points, fitted, planted_images
from tests.evaluation.defenses import Jpeg, Rounding
from tests.small import Blur, digits, train_small

IMAGES = digits()[0][:8]


def pgd(norm: str = "Linf", eps: float = 0.1, steps: int = 20) -> AttackSpec:
    spec = gradient_spec(f"pgd-{steps}", norm, eps)
    assert spec is not None
    return spec


def behind(purifier: nn.Module, classes: int = 10) -> nn.Module:
    return nn.Sequential(purifier, train_small(classes)).eval().requires_grad_(False)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 1.0)])
@pytest.mark.parametrize("classes", [10, 3])
def test_pgd_finds_what_was_planted(norm: str, eps: float, classes: int) -> None:
    """In either norm, and where there are few logits to read."""
    images = digits(classes)[0][:8]
    assert planted_images(behind(Blur(), classes), images, pgd(norm, eps), 0) == PlantedImages(8, 8)


def test_a_point_is_planted_and_chance_does_not_find_it() -> None:
    """It lies in the ball, is of class 1 alone among the points, and most other points of the border are not."""
    model = behind(Blur())
    points = [IMAGES, *border_points(IMAGES, pgd(), 7, 0)]
    readout = fitted(model, points)
    assert [int(readout(each).argmax(1).sum()) for each in points] == [0, 8, 0, 0, 0, 0, 0, 0]
    assert float((points[1] - IMAGES).abs().max()) <= 0.1 + 1e-6
    chance = torch.stack([readout(each).argmax(1) for each in border_points(IMAGES, pgd(), 50, 1)])
    assert float(chance.float().mean()) < 0.4


@pytest.mark.parametrize("purifier", [Rounding(), Jpeg()], ids=lambda each: type(each).__name__)
def test_an_attack_without_gradients_misses(purifier: nn.Module) -> None:
    """It stays where chance has put it."""
    result = planted_images(ZeroGradient(behind(purifier)).eval(), IMAGES, pgd(), 0)
    assert result.planted >= 4
    assert result.found < result.planted


def test_too_few_steps_miss() -> None:
    """A weak attack is told from a strong one: one step of a hundredth of the budget."""
    weak = AttackSpec("bim", "Linf", 0.1, 0.001, 1, random_start=False, targeted=False)
    assert planted_images(behind(Blur()), IMAGES, weak, 0).found < 8


def test_nothing_is_planted_where_nothing_can_be_read() -> None:
    """A model that answers the same everywhere."""

    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 0 * images.flatten(1)[:, :10]

    assert planted_images(Constant().eval(), IMAGES, pgd(), 0) == PlantedImages(0, 0)


def test_autoattacks_parts_find_it() -> None:
    """APGD and Square, on one image after another: the readout is that of its place."""
    for number, image in enumerate(IMAGES[:3].split(1)):
        points = [image, *border_points(image, pgd(), 7, number)]
        readout = fitted(behind(Blur()), points).eval().requires_grad_(False)
        for name in ("apgd-ce", "square-500"):
            state = NamedAttack(name, "Linf", 0.1).run(
                readout, image, torch.tensor([0]), keys=[0], seed=0, batch_size=1
            )
            assert not state.robust.any(), name
