"""Certificates: the bound against SciPy, the radius against a model whose truth is known, draws that are keyed."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from maep.config.evaluation_settings import CertifySettings
from maep.evaluation.certification.certificate_record import Certificate
from maep.evaluation.certification.smoothing import CHOOSING, Smoothed, certified_radius, largest_radius, lower_bound
from maep.runtime.errors import UserError

SETTINGS = CertifySettings(sigma=[0.25], first_draws=50, draws=400, alpha=0.001, batch_size=128)


class TwoHalves(nn.Module):
    """Two classes on either side of a plane: images [N, 3, H, W] → logits [N, 2], of the signed distance to it."""

    def __init__(self, side: int) -> None:
        super().__init__()
        normal = torch.randn(3, side, side, generator=torch.Generator().manual_seed(0))
        self.normal = normal / normal.norm()

    def distance(self, images: Tensor) -> Tensor:
        """Signed, in L2, from the plane through grey."""
        return ((images - 0.5) * self.normal).flatten(1).sum(1)

    def forward(self, images: Tensor) -> Tensor:
        distance = self.distance(images)
        return torch.stack([-distance, distance], 1)


@pytest.mark.parametrize(("count", "draws"), [(1, 10), (55, 100), (993, 1000), (1000, 1000), (100_000, 100_000)])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_bound_is_clopper_and_pearsons(count: int, draws: int, alpha: float) -> None:
    """It is SciPy's exact interval, and solves its equation: so many or more are alpha's share at that probability."""
    bound = lower_bound(count, draws, alpha)
    exact = stats.binomtest(count, draws, alternative="greater").proportion_ci(1 - alpha, "exact")
    assert bound == pytest.approx(exact.low, rel=1e-9)
    assert stats.binom.sf(count - 1, draws, bound) == pytest.approx(alpha, rel=1e-6)


def test_bound_of_nothing_and_of_nonsense() -> None:
    """What never came true may be impossible; counts that cannot be are refused."""
    assert lower_bound(0, 10, 0.001) == 0
    for count, draws in ((11, 10), (-1, 10), (0, 0)):
        with pytest.raises(ValueError, match="of"):
            lower_bound(count, draws, 0.001)


def test_radius() -> None:
    """σ·Φ⁻¹ of the bound; none where the class may be the rarer one; all draws agreeing give the largest."""
    assert certified_radius(900, 1000, 0.5, 0.001) == pytest.approx(0.5 * stats.norm.ppf(lower_bound(900, 1000, 0.001)))
    assert certified_radius(530, 1000, 0.5, 0.001) is None
    assert largest_radius(1000, 0.25, 0.001) == pytest.approx(0.25 * stats.norm.ppf(0.001 ** (1 / 1000)))
    assert largest_radius(5, 0.25, 0.001) == 0


@pytest.mark.parametrize(("draws", "most"), [(1_000, 2.46), (10_000, 3.20), (100_000, 3.81)])
def test_the_largest_radii_are_those_of_the_literature(draws: int, most: float) -> None:
    """In units of σ at α = 0.001; and a radius of one or two σ needs 84.1 or 97.7 % of the draws at least."""
    assert largest_radius(draws, 1.0, 0.001) == pytest.approx(most, abs=0.005)
    assert largest_radius(draws, 0.25, 0.001) == pytest.approx(most / 4, abs=0.002)
    for share, radius in ((0.841, 1.0), (0.977, 2.0)):
        reached = certified_radius(round(share * draws), draws, 1.0, 0.001)
        assert reached is not None
        assert radius - 10 / math.sqrt(draws) < reached < radius


def test_certificates_hold_where_the_truth_is_known() -> None:
    """Before two halves the smoothed class changes at the plane: no radius reaches it, and the attack that does wins.

    Confident ones come close to it, so the bound is not loose; within α all of 60 hold.
    """
    model, side = TwoHalves(8).eval(), 8
    images = torch.rand(60, 3, side, side, generator=torch.Generator().manual_seed(1))
    distances = model.distance(images)
    smoothed = Smoothed(model, model, SETTINGS, 0.25, seed=0)
    shares = []
    for number, (image, distance) in enumerate(zip(images, distances, strict=True)):
        label = int(distance > 0)
        certificate = smoothed.certify(image, label, number)
        if certificate.abstains:
            assert abs(distance) < 0.25
            assert certificate.radius == 0
            continue
        assert certificate.prediction == label
        assert certificate.radius <= abs(distance), "a certificate that an attack breaks"
        moved = image - (distance + 0.1 * distance.sign()) * model.normal  # the shortest way, and 0.1 over the plane
        assert int(smoothed.votes(moved, number, CHOOSING, 1000).argmax()) != label
        shares.append(certificate.radius / min(abs(float(distance)), largest_radius(400, 0.25, 0.001)))
    assert len(shares) > 30
    assert np.median(shares) > 0.6


def test_an_unlikely_class_is_not_certified() -> None:
    """An image on the plane is a matter of chance: it abstains, and holds at no radius."""
    model = TwoHalves(8).eval()
    certificate = Smoothed(model, model, SETTINGS, 0.25, seed=0).certify(torch.full((3, 8, 8), 0.5), 1, 0)
    assert certificate.abstains
    assert not certificate.holds_at(0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    """Their argmax is always the same class: without a word it would be certified at the largest radius."""
    model = nn.Flatten().eval()
    image = torch.full((3, 8, 8), value)
    with pytest.raises(UserError, match="image 7: its logits under noise of 0.25 are not finite"):
        Smoothed(model, model, SETTINGS, 0.25, seed=0).certify(image, 0, 7)


def test_holds_at() -> None:
    """Right, sure, and far enough."""
    right = Certificate(0, 3, 3, 900, 0.4, abstains=False)
    assert right.holds_at(0.4)
    assert not right.holds_at(0.41)
    assert not Certificate(0, 2, 3, 900, 0.4, abstains=False).holds_at(0)


class FirstPixels(nn.Module):
    """Five classes, each the brightness of one pixel; noise: what the model itself draws, from torch's generator."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, images: Tensor) -> Tensor:
        return (images + self.noise * torch.randn_like(images)).flatten(1)[:, :5]


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_draws_are_keyed(noise: float) -> None:
    """By seed, image and purpose, not by torch's own generator, from which a model itself may draw."""
    model, elsewhere = FirstPixels(noise).eval(), itertools.count()
    image = torch.full((3, 8, 8), 0.5)

    def votes(seed: int = 0, sample: int = 7, purpose: str = "certify", draws: int = 300) -> list[int]:
        torch.manual_seed(next(elsewhere))
        return Smoothed(model, model, SETTINGS, 0.25, seed).votes(image, sample, purpose, draws).tolist()

    first = votes()
    assert sum(first) == 300
    torch.rand(5)
    assert votes() == first
    others = [votes(seed=1), votes(sample=8), votes(purpose=CHOOSING)]
    assert all(other != first for other in others)


def test_more_draws_go_on_from_fewer() -> None:
    """The first draws of many are those of few, where they fill whole batches."""
    model = TwoHalves(8).eval()
    image = torch.full((3, 8, 8), 0.5)
    smoothed = Smoothed(model, model, SETTINGS, 0.25, 0)
    few, many = (smoothed.votes(image, 0, "certify", draws) for draws in (128, 256))
    assert bool((many - few >= 0).all())
    assert int((many - few).sum()) == 128


def test_alpha_is_kept() -> None:
    """Of 400 bounds at level 0.1 of a probability of 0.8, about a tenth are too high, and no more."""
    rng = np.random.default_rng(0)
    wrong = sum(lower_bound(int(rng.binomial(100, 0.8)), 100, 0.1) > 0.8 for _ in range(400)) / 400
    assert wrong <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 400)
    assert wrong > 0.02
