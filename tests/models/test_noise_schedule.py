"""The VP schedule against its integral and Ho et al.'s steps; its conversions against a denoiser in closed form."""

import math

import pytest
import torch
from torch import Tensor

from maep.models.noise_schedule import alpha_bar, beta, clean_estimate, denoised, diffused, score, sigma_of, time_of

SPREAD = 0.6  # deviation of the pictures N(0, SPREAD² I), whose denoiser has a closed form


def predicted(u: Tensor, t: Tensor) -> Tensor:
    """The mean noise in u, of pictures N(0, SPREAD² I)."""
    left = alpha_bar(t).view(-1, 1, 1, 1)
    return u * (1 - left).sqrt() / (SPREAD**2 * left + 1 - left)


def test_is_the_integral_of_its_rate() -> None:
    """ᾱ = exp(-∫β), and near Ho et al.'s product of 1000 steps."""
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    integral = torch.cumulative_trapezoid(beta(t), t)
    torch.testing.assert_close(alpha_bar(t)[1:], torch.exp(-integral))
    steps = (1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0)
    assert (steps - alpha_bar(t)[1:]).abs().max() < 2e-3


def test_times_and_noise_levels_are_inverse() -> None:
    """σ² = 1/ᾱ - 1, there and back; the levels that published purifiers visit are where their authors say."""
    t = torch.linspace(1e-5, 1, 100, dtype=torch.float64)
    torch.testing.assert_close(time_of(sigma_of(t)), t)
    levels = {0.036: 0.129, 0.075: 0.256, 0.1: 0.340, 0.15: 0.519}
    for time, level in levels.items():
        assert float(sigma_of(torch.tensor(time))) == pytest.approx(level, rel=0.01)


def test_readings_of_one_network_agree() -> None:
    """D(v, σ) = v·c²/(c² + σ²), the score of N(0, …) and the estimate of the picture, all from its predicted noise."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.01, 0.05, 0.1, 0.2], dtype=torch.float64)
    sigma = sigma_of(t).view(-1, 1, 1, 1)
    torch.testing.assert_close(denoised(predicted, v, sigma_of(t)), v * SPREAD**2 / (SPREAD**2 + sigma**2))
    left = alpha_bar(t).view(-1, 1, 1, 1)
    u = v * left.sqrt()
    torch.testing.assert_close(score(predicted, u, t), -u / (SPREAD**2 * left + 1 - left))
    torch.testing.assert_close(clean_estimate(u, t, predicted(u, t)), denoised(predicted, v, sigma_of(t)))


def test_what_is_diffused_comes_back() -> None:
    """The noise known, the picture is; a picture keeps ᾱ of its variance."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 3, 3, 40, 40, generator=generator, dtype=torch.float64)
    t = torch.tensor([1e-5, 0.1, 0.9], dtype=torch.float64)
    u = diffused(x, t, noise)
    torch.testing.assert_close(clean_estimate(u, t, noise), x)
    assert float(diffused(SPREAD * x, t, noise)[1].var()) == pytest.approx(
        SPREAD**2 * math.exp(-0.1095) + 1 - math.exp(-0.1095), rel=0.05
    )
