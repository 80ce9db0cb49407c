"""Normalized patches are those of MAE's norm_pix_loss, and can be given back their mean and deviation."""

import pytest
import torch
from torch import Tensor

from maep.models.masked_autoencoder import patchify
from maep.models.normalized_patches import IMAGENET_MEAN, IMAGENET_STD, normalized_patches, restored_patches


def images(seed: int = 0) -> Tensor:
    """Two of 8 x 12."""
    return torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_equal_maes_target(patch: int) -> None:
    """MAE's code by hand: of ImageNet-normalised images each patch minus its mean, over √(unbiased variance + 1e-6)."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    patches = patchify((images() - mean) / std, patch)
    expected = []
    for values in patches.flatten(0, 1):
        centered = values - values.sum() / len(values)
        expected.append(centered / (centered.square().sum() / (len(values) - 1) + 1e-6).sqrt())
    found = patchify(normalized_patches(images(), patch), patch).flatten(0, 1)
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_their_own_mean_and_deviation_make_the_image_again(patch: int) -> None:
    """Those of another image make another one, whose patches are normalized the same."""
    restored = restored_patches(normalized_patches(images(), patch), images(), patch)
    torch.testing.assert_close(restored, images())
    other = restored_patches(normalized_patches(images(), patch), images(1), patch)
    assert (other - images()).abs().max() > 0.1
    # Not to the last digits: what is added to a variance counts where a patch of one pixel has next to none.
    torch.testing.assert_close(normalized_patches(other, patch), normalized_patches(images(), patch), rtol=0, atol=0.01)


def test_a_patch_of_one_colour_has_finite_numbers_and_gradients() -> None:
    """ImageNet's mean is 0 in all channels: its deviation there is 0."""
    grey = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone().requires_grad_()
    restored = restored_patches(normalized_patches(grey, 4), grey, 4)
    torch.testing.assert_close(restored, grey)
    (gradient,) = torch.autograd.grad(restored.sum(), grey)
    assert gradient.isfinite().all()


def test_gradients_reach_both() -> None:
    """Of a prediction, and of the image whose mean and deviation it gets: an attacker follows both."""
    normalized = images().requires_grad_()
    like = images(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: restored_patches(a, b, 4), (normalized, like))
