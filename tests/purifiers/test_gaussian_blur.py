"""Gaussian blur: the Gaussian's weights, constant images kept, exact gradients."""

import pytest
import torch

from maep.config.load import load_settings
from maep.purifiers.gaussian_blur import GaussianBlurPurifier, GaussianBlurSettings
from maep.runtime.errors import UserError


def test_a_point_becomes_the_gaussian() -> None:
    """Around the middle of a large image, the product of two normalised Gaussians; elsewhere nothing."""
    images = torch.zeros(1, 3, 21, 21)
    images[:, 1, 10, 10] = 1
    weights = torch.exp(-0.5 * (torch.arange(-3, 4) / 1.0).square())
    weights = weights / weights.sum()
    expected = torch.zeros(21, 21)
    expected[7:14, 7:14] = weights[:, None] * weights[None]
    blurred = GaussianBlurPurifier(GaussianBlurSettings(sigma=1.0))(images)
    torch.testing.assert_close(blurred[0, 1], expected)
    assert blurred[0, [0, 2]].eq(0).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 20)])
def test_a_constant_image_stays(size: tuple[int, int]) -> None:
    """Also where the window is larger than the image."""
    images = torch.full((1, 3, *size), 0.3)
    torch.testing.assert_close(GaussianBlurPurifier(GaussianBlurSettings(sigma=4.0))(images), images)


def test_gradients_are_exact() -> None:
    """Against finite differences."""
    images = torch.rand(1, 3, 4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(GaussianBlurPurifier(GaussianBlurSettings(sigma=0.5)), images)


def test_no_blur_is_refused() -> None:
    """A deviation of none is no defense."""
    with pytest.raises(UserError, match=r"gaussian_blur\.sigma=0.*must be at least 0\.1"):
        load_settings(None, ["purifier.kind=gaussian_blur", "gaussian_blur.sigma=0"])
