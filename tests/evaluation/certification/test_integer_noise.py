"""Noise of whole levels: its table against the distribution, what is drawn against the table, and what it certifies."""

import math
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from maep.config.evaluation_settings import CertifySettings
from maep.data.shards import to_float
from maep.evaluation.certification.integer_noise import BITS, level_noise, normal_cdf
from maep.evaluation.certification.smoothing import Smoothed, certified_radius
from maep.runtime.errors import UserError
from tests.evaluation.certification.test_smoothing import TwoHalves

CPU = torch.device("cpu")


def probabilities(sigma: float) -> tuple[np.ndarray, list[Fraction]]:
    """The levels that come on, and the exact probability of each as it is drawn."""
    noise = level_noise(sigma)
    bounds = [0, *noise.thresholds.tolist(), 2**BITS]
    shares = [Fraction(high - low, 2**BITS) for low, high in pairwise(bounds)]
    return np.arange(len(shares)) + noise.lowest, shares


def test_the_normal_distribution_to_thirty_digits() -> None:
    """Against values of tables in 30 digits, and against SciPy where double precision holds it."""
    assert abs(normal_cdf(Decimal(-1)) - Decimal("0.158655253931457051414767454368")) < Decimal("1e-30")
    assert abs(normal_cdf(Decimal(-6)) - Decimal("9.86587645037698140700864132398e-10")) < Decimal("1e-30")
    for x in np.linspace(-9, 3, 50):
        assert float(normal_cdf(Decimal(repr(float(x))))) == pytest.approx(stats.norm.cdf(x), rel=1e-10)


@pytest.mark.parametrize("sigma", [0.02, 0.25, 1.0])
def test_what_is_drawn_is_the_rounded_normal_distribution(sigma: float) -> None:
    """Level by level Φ((k+½)/s) - Φ((k-½)/s); in all within the stated error; symmetric, and it adds up to 1."""
    levels, shares = probabilities(sigma)
    exact = [
        normal_cdf((Decimal(int(k)) + Decimal("0.5")) / (255 * Decimal(repr(sigma))))
        - normal_cdf((Decimal(int(k)) - Decimal("0.5")) / (255 * Decimal(repr(sigma))))
        for k in levels
    ]
    apart = sum(abs(Decimal(p.numerator) / p.denominator - q) for p, q in zip(shares, exact, strict=True)) / 2
    assert 0 < apart < Decimal(level_noise(sigma).error) < Decimal("1e-14")
    assert sum(shares) == 1
    assert shares == shares[::-1]
    assert min(shares) >= 0
    deviation = math.sqrt(float(sum(p * int(k) ** 2 for p, k in zip(shares, levels, strict=True))))
    assert deviation == pytest.approx(math.sqrt((255 * sigma) ** 2 + 1 / 12), rel=1e-6)


def test_draws_follow_the_distribution_and_their_keys() -> None:
    """300,000 draws by the chi-squared test; a row depends on its key alone, and other purposes and seeds differ."""
    sigma = 0.02
    levels, shares = probabilities(sigma)
    drawn = level_noise(sigma).draw("test", 0, range(100), (3, 1000), CPU)
    assert drawn.dtype == torch.int64
    counts = np.bincount((drawn - levels[0]).flatten().numpy(), minlength=len(levels))
    expected = np.array([float(p) for p in shares]) * drawn.numel()
    often = expected > 10
    assert (
        stats.chisquare([*counts[often], counts[~often].sum()], [*expected[often], expected[~often].sum()]).pvalue
        > 1e-3
    )
    assert torch.equal(level_noise(sigma).draw("test", 0, [7], (3, 1000), CPU)[0], drawn[7])
    for other in (("other", 0), ("test", 1)):
        assert not torch.equal(level_noise(sigma).draw(*other, range(100), (3, 1000), CPU), drawn)


def smoothed(**settings: object) -> Smoothed:
    model = TwoHalves(8).eval()
    chosen = CertifySettings(first_draws=20, draws=300, batch_size=128, sampling="integer", **settings)  # type: ignore[arg-type]
    return Smoothed(model, model, chosen, 0.25, seed=0)


def test_noisy_images_are_whole_levels() -> None:
    """An image of 8 bits under noise is k/255, to the bit, outside of [0, 1] too; one of no levels is refused."""
    pixels = torch.arange(192).reshape(3, 8, 8).byte()
    noisy = smoothed().noisy(to_float(pixels), "certify", range(50))
    levels = (noisy.double() * 255).round()
    assert torch.equal((levels.float() / 255), noisy)
    assert float(levels.min()) < 0
    assert float(levels.max()) > 255
    assert (levels - pixels).std() == pytest.approx(0.25 * 255, rel=0.02)
    with pytest.raises(UserError, match="not of 8 bits; use certify.sampling=float"):
        smoothed().certify(to_float(pixels) + 0.3 / 255, 0, 0)


def test_certificates_by_whole_levels() -> None:
    """Where the truth is known they hold; the error of all pixels is taken off the bound, which hardly moves."""
    images = (torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    model = smoothed()
    held = 0
    for number, image in enumerate(images):
        distance = float(model.classify.distance(image[None]))  # type: ignore[attr-defined]
        certificate = model.certify(image, int(distance > 0), number)
        assert certificate.radius <= abs(distance)
        held += certificate.holds_at(0.05)
    assert held > 8
    exact, loose = (certified_radius(290, 300, 0.25, 0.001, error) for error in (0.0, 1e-3))
    assert exact is not None
    assert loose is not None
    assert loose < exact
    assert certified_radius(290, 300, 0.25, 0.001, level_noise(0.25).error * 3072) == pytest.approx(exact, abs=1e-10)
    assert certified_radius(290, 300, 0.25, 0.001, 0.5) is None
