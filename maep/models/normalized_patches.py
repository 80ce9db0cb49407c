"""Patches brought to mean 0 and deviation 1, in which MAE (`norm_pix_loss`) and NIM-MAE are trained, and back.

The mean and deviation are of all values of a patch, over its pixels and channels, in ImageNet's units as in their code.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALLEST = 1e-6  # added to a variance: a patch of one colour has none


def normalized_patches(images: Tensor, patch: int) -> Tensor:
    """images: [N, 3, H, W] in [0, 1], sides multiples of p = `patch`. Returns the same shape, each patch normalized."""
    values, mean, deviation = _of_patches(images, patch)
    return ((values - mean) / deviation).reshape(images.shape)


def restored_patches(normalized: Tensor, like: Tensor, patch: int) -> Tensor:
    """The inverse, where each patch is given the mean and deviation of that of `like`, [N, 3, H, W] in [0, 1].

    normalized: the same shape. Returns it in the [0, 1] scale, not clipped; gradients go to both.
    """
    values, mean, deviation = _of_patches(like, patch)
    units = (normalized.reshape(values.shape) * deviation + mean).reshape(like.shape)
    return torch.stack([x * std + center for x, center, std in _channels(units)], 1)


def _of_patches(images: Tensor, patch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values [N, 3, rows, p, columns, p] in ImageNet's units, and the mean and deviation of each patch."""
    height, width = images.shape[-2:]
    units = torch.stack([(x - center) / std for x, center, std in _channels(images)], 1)
    # The first axis is -1: a trace keeps len(images) as a number, and the exported network takes that batch alone.
    values = units.reshape(-1, 3, height // patch, patch, width // patch, patch)
    variance, mean = torch.var_mean(values, (1, 3, 5), keepdim=True)
    return values, mean, (variance + SMALLEST).sqrt()


def _channels(images: Tensor) -> Iterable[tuple[Tensor, float, float]]:
    """Each channel, with ImageNet's mean and deviation of it: as a tensor they would be uploaded at every step."""
    return zip(images.unbind(1), IMAGENET_MEAN, IMAGENET_STD, strict=True)
