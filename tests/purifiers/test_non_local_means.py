"""Non-local means: its weights, what repeats is averaged over all of its places, exact gradients."""

import math

import pytest
import torch
from torch import Tensor

from maep.config.load import load_settings
from maep.purifiers.non_local_means import NonLocalMeansPurifier, NonLocalMeansSettings
from maep.runtime.errors import UserError


def pictures(count: int, *size: int) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def test_a_pixel_is_the_mean_of_what_lies_in_like_patches() -> None:
    """As written out for one pixel: all patches of a window, compared pixel by pixel."""
    image, row, column = pictures(1, 15, 14), 7, 6
    purified = NonLocalMeansPurifier(NonLocalMeansSettings(patch=3, window=5, strength=0.4))(image)

    def patch(y: int, x: int) -> Tensor:
        return image[0, :, y - 1 : y + 2, x - 1 : x + 2]

    total, weights = torch.zeros(3), 0.0
    for y in range(row - 2, row + 3):
        for x in range(column - 2, column + 3):
            weight = math.exp(-float((patch(y, x) - patch(row, column)).square().mean()) / 0.4**2)
            total, weights = total + weight * image[0, :, y, x], weights + weight
    torch.testing.assert_close(purified[0, :, row, column], total / weights)


def test_noise_goes_where_the_image_repeats_itself() -> None:
    """Of stripes with noise most of the noise is gone, and the stripes stay."""
    clean = (0.2 + 0.6 * (torch.arange(16) // 2 % 2)).expand(1, 3, 16, 16)
    noisy = (clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    filtered = NonLocalMeansPurifier(NonLocalMeansSettings(strength=0.2))(noisy)
    assert (filtered - clean).square().mean() < (noisy - clean).square().mean() / 5


@pytest.mark.parametrize("size", [(1, 1), (3, 20)])
def test_a_constant_image_stays(size: tuple[int, int]) -> None:
    """Also where window and patch are larger than the image."""
    images = torch.full((1, 3, *size), 0.3)
    torch.testing.assert_close(NonLocalMeansPurifier(NonLocalMeansSettings())(images), images)


def test_gradients_are_exact() -> None:
    """Against finite differences, through the weights too."""
    images = pictures(1, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(NonLocalMeansPurifier(NonLocalMeansSettings(window=3, strength=0.3)), images)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("patch=4", r"non_local_means\.patch=4: must be odd, such as 5"),
        ("window=6", r"non_local_means\.window=6: must be odd, such as 7"),
        ("strength=0", r"non_local_means\.strength=0"),
    ],
)
def test_bad_settings_are_refused(line: str, message: str) -> None:
    """By name."""
    with pytest.raises(UserError, match=message):
        load_settings(None, ["purifier.kind=non_local_means", f"non_local_means.{line}"])
