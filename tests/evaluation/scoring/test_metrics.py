"""Intervals and likeness of images agree with known values."""

import math

import pytest
import torch
from scipy.stats import binomtest

from maep.evaluation.scoring.metrics import (
    count_right,
    directions_cosine,
    distances,
    energies,
    psnr,
    purified_distances,
    ssim,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (5, 10), (81, 263), (887, 1000), (1, 1), (63, 64)])
def test_wilson_interval(successes: int, n: int) -> None:
    """The interval is scipy's Wilson interval, at the ends too."""
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_interval_published() -> None:
    """Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_interval_of_nothing(successes: int, n: int) -> None:
    """Counts that cannot be raise."""
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, n)


def test_psnr_per_image() -> None:
    """A uniform error of 0.1 is 20 dB, of 0.01 is 40 dB, each image for itself; equal images count as 100 dB."""
    clean = torch.full((3, 3, 8, 8), 0.5)
    images = clean + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    assert psnr(images, clean).tolist() == pytest.approx([20, 40, 100], abs=1e-3)


def test_ssim_per_image() -> None:
    """Equal images have 1; noise has less, each image for itself and not depending on its neighbours."""
    torch.manual_seed(0)
    clean = torch.rand(70, 3, 16, 16)
    images = clean.clone()
    images[1] = torch.rand(3, 16, 16)
    values = ssim(images, clean)
    assert values.shape == (70,)
    assert values[0] == pytest.approx(1)
    assert values[1] < 0.3
    assert values[1] == pytest.approx(ssim(images[1:2], clean[1:2]).item(), abs=1e-6)


def test_ssim_of_constants() -> None:
    """For constant images SSIM is its luminance term, (2ab + c) / (a² + b² + c)."""
    a, b, c = 0.4, 0.6, 0.01**2
    value = ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b))
    assert value.item() == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=5e-4)


def test_distances() -> None:
    """L∞ is the largest, L2 the Euclidean difference of an image."""
    clean = torch.zeros(2, 3, 4, 4)
    images = clean.clone()
    images[1] += 0.5
    images[0, 0, 0, 0] = 0.25
    linf, l2 = distances(images, clean)
    assert linf.tolist() == [0.25, 0.5]
    assert l2.tolist() == pytest.approx([0.25, 0.5 * math.sqrt(48)])


def test_count_right() -> None:
    """Counts equal places, and refuses lists of other lengths."""
    assert count_right([1, 2, 3], [1, 0, 3]) == 2
    with pytest.raises(ValueError, match="shorter"):
        count_right([1, 2], [1])


def test_energies() -> None:
    """Half of a perturbation's amplitude left is three quarters of its energy gone; what is not along it is added."""
    clean = torch.full((4, 3, 4, 4), 0.5)
    attacked, purified = clean.clone(), clean.clone()
    attacked[:3, 0, 0, 0] += 0.2
    purified[1, 0, 0, 0] += 0.1
    purified[2, 1, 1, 1] += 0.1
    removed, added = energies(purified, attacked, clean)
    assert removed[:3].tolist() == pytest.approx([1, 0.75, 1], abs=1e-5)
    assert added[:3].tolist() == pytest.approx([0, 0, 0.25], abs=1e-5)
    assert removed[3].isnan()


def test_purified_distances() -> None:
    """Mean absolute differences from the clean image, of what became of it and of its adversarial one."""
    images = torch.full((2, 3, 4, 4), 0.5)
    clean, adversarial = images.clone(), images.clone()
    clean[0, 0] -= 0.3
    adversarial[1] += 0.2
    first, second = purified_distances(clean, adversarial, images)
    assert first.tolist() == pytest.approx([0.1, 0])
    assert second.tolist() == pytest.approx([0, 0.2])


def test_directions_cosine() -> None:
    """1 where both images are moved alike, -1 where oppositely, 0 across, none where one is not moved."""
    images = torch.full((4, 3, 4, 4), 0.5)
    attacked = images + 0.1
    clean, adversarial = images.clone(), attacked.clone()
    clean[:3, 0, 0, 0] += 0.1
    adversarial[0, 0, 0, 0] += 0.3
    adversarial[1, 0, 0, 0] -= 0.2
    adversarial[2:, 1, 0, 0] += 0.2
    cosine = directions_cosine(clean, adversarial, images, attacked)
    assert cosine[:3].tolist() == pytest.approx([1, -1, 0], abs=1e-5)
    assert cosine[3].isnan()
