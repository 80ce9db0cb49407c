"""Gaussian noise: as large as it says, clipped, its gradient the identity's."""

import pytest
import torch

from maep.config.load import load_settings
from maep.purifiers.gaussian_noise import GaussianNoisePurifier, GaussianNoiseSettings
from maep.runtime.errors import UserError


def test_the_noise_has_its_deviation() -> None:
    """Far from the ends of the range, mean 0 and deviation sigma within what 49,152 numbers vary by."""
    images = torch.full((1, 3, 128, 128), 0.5)
    noise = GaussianNoisePurifier(GaussianNoiseSettings(sigma=0.05))(images) - images
    assert noise.mean().abs() < 0.001
    assert noise.std() == pytest.approx(0.05, rel=0.02)


def test_the_gradient_is_that_of_the_image() -> None:
    """One where nothing is clipped, none where it is."""
    images = torch.full((1, 3, 8, 8), 0.5)
    images[..., 4:] = 1.0
    images.requires_grad_()
    noisy = GaussianNoisePurifier(GaussianNoiseSettings())(images)
    (gradient,) = torch.autograd.grad(noisy.sum(), images)
    inside = (noisy > 0) & (noisy < 1)
    assert torch.equal(gradient, inside.float())
    assert 0 < inside[..., 4:].float().mean() < 1


def test_a_budget_in_levels_is_refused() -> None:
    """8 in place of 8/255."""
    with pytest.raises(UserError, match=r"gaussian_noise\.sigma.*8/255"):
        load_settings(None, ["purifier.kind=gaussian_noise", "gaussian_noise.sigma=8"])
    with pytest.raises(ValueError, match="gaussian_noise.*cannot be exported"):
        torch.jit.trace(GaussianNoisePurifier(GaussianNoiseSettings()), torch.rand(1, 3, 8, 8))
