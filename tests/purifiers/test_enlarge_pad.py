"""Random enlarging and padding: sizes and places, a defended classifier that draws, and who can be defended so."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.attacks.reseeding import reseed
from maep.attacks.threat_models import AdaptiveEot, Oblivious
from maep.config.evaluation_settings import EvaluationSettings
from maep.evaluation.scoring.defense import Defense, Targets
from maep.purifiers.enlarge_pad import EnlargedClassifier, EnlargePadPurifier, EnlargePadSettings
from maep.runtime.errors import UserError


def purifier(**settings: float) -> EnlargePadPurifier:
    return EnlargePadPurifier(EnlargePadSettings(**settings))


class AnySize(nn.Module):
    """A linear classifier of mean colours, whose answers depend on where and how large an image lies."""

    def forward(self, images: Tensor) -> Tensor:
        ramp = torch.linspace(-1, 1, images.shape[3])
        return torch.cat([images.mean((2, 3)), (images * ramp).mean((2, 3))], 1)


class Full(nn.Module):
    """A classifier on a device that has no memory for larger images."""

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.mean((2, 3))


def test_sizes_and_places_are_those_published() -> None:
    """299 pixels become 299 to 330 on a canvas of 331, anywhere on it; all on grey."""
    canvas = purifier().enlarged(torch.ones(400, 3, 299, 2))
    assert canvas.shape == (400, 3, 331, 3)
    sizes, places = [], []
    for image in canvas:
        rows = image[0].amax(1).gt(0.9).nonzero().flatten()
        sizes.append(len(rows))
        places.append(int(rows[0]) / (331 - len(rows)))
        assert image[:, : rows[0]].eq(0.5).all()
        assert image[:, rows[-1] + 1 :].eq(0.5).all()
    assert 299 <= min(sizes) < 303
    assert 327 < max(sizes) <= 330
    assert sum(sizes) / len(sizes) == pytest.approx(314.5, abs=1.5)
    assert sum(places) / len(places) == pytest.approx(0.5, abs=0.05)
    assert min(places) < 0.1
    assert max(places) > 0.9


@pytest.mark.parametrize("growth", [0.0, 0.99])
def test_an_image_is_resized_as_torch_does(growth: float) -> None:
    """By the cubic kernel, both sides alike, at the drawn place; the smallest and the largest size."""
    image, defense = torch.rand(1, 3, 20, 30), purifier(enlarge=0.2)
    defense.rng = Drawn([growth, 0.4, 0.6])  # type: ignore[assignment]
    canvas = defense.enlarged(image)
    size = (20, 30) if growth == 0 else (23, 35)
    top, left = int(0.4 * (24 - size[0] + 1)), int(0.6 * (36 - size[1] + 1))
    expected = torch.full((1, 3, 24, 36), 0.5)
    resized = F.interpolate(image, size, mode="bicubic", antialias=True)
    expected[:, :, top : top + size[0], left : left + size[1]] = resized
    torch.testing.assert_close(canvas, expected, atol=1e-5, rtol=0)


class Drawn:
    """A generator that draws what it is told."""

    def __init__(self, numbers: list[float]) -> None:
        self.numbers = numbers

    def random(self, count: int) -> list[float]:
        assert count == len(self.numbers)
        return self.numbers


def test_each_image_has_its_own_draw() -> None:
    """Whatever the batch; the same key gives the same bits, another others; no image is no image."""
    images, defense = torch.rand(1, 3, 32, 32).expand(12, -1, -1, -1), purifier()
    defense.reseed(4)
    together = defense.enlarged(images)
    assert len({tuple(canvas.flatten().tolist()) for canvas in together}) > 5
    defense.reseed(4)
    assert torch.equal(torch.cat([defense.enlarged(image) for image in images.split(1)]), together)
    assert not torch.equal(defense.enlarged(images), together)
    assert defense.enlarged(images[:0]).shape == (0, 3, 35, 35)


def test_it_is_judged_as_a_classifier_that_draws() -> None:
    """Who does not know it attacks the bare classifier; who averages over draws gets the mean of their logits."""
    classifier, images = AnySize(), torch.rand(2, 3, 16, 16)
    defense = Defense.of(purifier(), classifier, "p", "c")
    assert isinstance(defense.defended, EnlargedClassifier)
    targets = Targets(defense, EvaluationSettings(draws=3), images)
    assert defense.says_random
    assert targets.gives_gradient
    assert torch.equal(targets.exact(Oblivious())(images), classifier(images))
    averaged = targets.exact(AdaptiveEot())
    reseed(averaged, 5)
    found, each = averaged(images), []
    for number in range(3):
        defense.defended.purifier.reseed(5, 1, number)
        each.append(defense.defended(images))
    torch.testing.assert_close(found, torch.stack(each).mean(0))
    assert not torch.equal(each[0], each[1])


def test_gradients_are_exact() -> None:
    """For each draw a linear map, of black and white as well."""
    images = torch.rand(2, 3, 9, 11, dtype=torch.float64).round()
    defense = purifier()

    def drawn(images: Tensor) -> Tensor:
        defense.reseed(3)
        return defense.enlarged(images)

    assert torch.autograd.gradcheck(drawn, images.requires_grad_(), atol=1e-4)


def test_as_a_picture_it_has_the_images_size() -> None:
    """The canvas made smaller, in [0, 1]: grey stays grey, white has a border, edges do not overshoot."""
    grey = torch.full((3, 3, 24, 32), 0.5)
    torch.testing.assert_close(purifier()(grey), grey)
    picture = purifier()(torch.ones(3, 3, 24, 32))
    assert picture.shape == grey.shape
    assert picture.min() < 0.6
    assert picture[:, :, 8:16, 10:22].min() > 0.99
    edges = purifier()(torch.rand(3, 3, 24, 32).round())
    assert edges.min() == 0
    assert edges.max() == 1


def test_a_classifier_of_one_size_is_named() -> None:
    """With the size that it was given; what it says of images that it does not take either is its own."""
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    defended = purifier().defended(fixed)
    with pytest.raises(UserError, match=r"purifier\.kind=enlarge_pad: the classifier takes no images of 9 x 9: mat1"):
        defended(torch.rand(2, 3, 8, 8))
    with pytest.raises(RuntimeError, match="mat1"):
        defended(torch.rand(2, 3, 16, 16))
    with pytest.raises(torch.OutOfMemoryError):
        purifier().defended(Full())(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="cannot be exported"):
        torch.jit.trace(purifier(), torch.rand(1, 3, 8, 8))
