"""Gaussian blur as a purifier: no weights, nothing drawn, linear, so that its gradients are exact."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maep.config.setting import setting
from maep.purifiers.base import Filter, in_own_type, require_images
from maep.purifiers.tiling import reflected

REACH = 3  # deviations on each side; what lies beyond has 0.3 % of the weight


@dataclass
class GaussianBlurSettings:
    """Section `gaussian_blur`. Above 8 pixels nothing is left of a 32 x 32 image."""

    sigma: float = setting(0.5, "standard deviation of the blur", unit="pixels", low=0.1, high=8.0)


class GaussianBlurPurifier(Filter):
    """Each pixel of each channel becomes the Gaussian mean around it; images are mirrored at their ends."""

    kind = "gaussian_blur"
    Settings = GaussianBlurSettings
    settings: GaussianBlurSettings

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: a copy of the image for each weight of the kernel, and 6 more."""
        return (2 * math.ceil(REACH * self.settings.sigma) + 1 + 6) * 12 * height * width

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape and range. Raises ValueError for another shape."""
        require_images(images)
        half = math.ceil(REACH * self.settings.sigma)
        weights = torch.exp(-0.5 * (torch.arange(-half, half + 1, device=images.device) / self.settings.sigma).square())
        weights = (weights / weights.sum()).to(images.dtype)
        for axis in (2, 3):
            length = images.shape[axis]
            continued = reflected(length, length + 2 * half, half).to(images.device)
            with in_own_type(images):
                images = images.index_select(axis, continued).unfold(axis, 2 * half + 1, 1) @ weights
        return images.clamp(0, 1)
