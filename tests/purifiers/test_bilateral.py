"""The bilateral filter: its weights, edges kept where a blur takes them, exact gradients."""

import math

import pytest
import torch
from torch import Tensor

from maep.config.load import load_settings
from maep.purifiers.bilateral import BilateralPurifier, BilateralSettings
from maep.purifiers.gaussian_blur import GaussianBlurPurifier, GaussianBlurSettings
from maep.runtime.errors import UserError


def pictures(count: int, *size: int) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def test_a_pixel_is_the_weighted_mean_of_a_round_window() -> None:
    """As written out for one pixel at a time, in the middle and at an end, where the image is mirrored."""
    image = pictures(1, 9, 8)
    purified = BilateralPurifier(BilateralSettings(sigma_space=1.0, sigma_color=0.3))(image)
    for row, column in ((4, 4), (0, 7)):
        total, weights = torch.zeros(3), 0.0
        for down in range(-2, 3):
            for right in range(-2, 3):
                if down**2 + right**2 > 4:
                    continue
                y, x = abs(row + down), column + right
                neighbour = image[0, :, y, x if x < 8 else 14 - x]
                colour = float((neighbour - image[0, :, row, column]).square().sum())
                weight = math.exp(-(down**2 + right**2) / 2 - colour / (2 * 0.3**2))
                total, weights = total + weight * neighbour, weights + weight
        torch.testing.assert_close(purified[0, :, row, column], total / weights)


def test_edges_stay_and_noise_goes() -> None:
    """Of a step between black and white nothing is lost, where a blur of the same width smears it."""
    clean = torch.zeros(1, 3, 16, 16)
    clean[..., 8:] = 1
    noisy = (clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    filtered = BilateralPurifier(BilateralSettings(sigma_space=1.0, sigma_color=0.3))(noisy)
    blurred = GaussianBlurPurifier(GaussianBlurSettings(sigma=1.0))(noisy)
    before, ours, theirs = ((each - clean).square().mean() for each in (noisy, filtered, blurred))
    assert ours < before / 2
    assert theirs > before


@pytest.mark.parametrize("size", [(1, 1), (3, 20)])
def test_a_constant_image_stays(size: tuple[int, int]) -> None:
    """Also where the window is larger than the image."""
    images = torch.full((1, 3, *size), 0.3)
    torch.testing.assert_close(BilateralPurifier(BilateralSettings(sigma_space=4.0))(images), images)


def test_gradients_are_exact() -> None:
    """Against finite differences, through the weights too."""
    images = pictures(1, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(BilateralPurifier(BilateralSettings(sigma_space=0.5, sigma_color=0.2)), images)


@pytest.mark.parametrize("line", ["bilateral.sigma_space=0", "bilateral.sigma_color=0"])
def test_no_filter_is_refused(line: str) -> None:
    """By name."""
    with pytest.raises(UserError, match=rf"{line.split('=')[0].replace('.', '[.]')}=0"):
        load_settings(None, ["purifier.kind=bilateral", line])
