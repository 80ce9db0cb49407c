"""The bilateral filter as a purifier (Tomasi and Manduchi 1998): a blur that stops at edges.

No weights, nothing drawn. A pixel is averaged with those around it that have about its colour, so that small
perturbations of flat regions go and edges stay; gradients are exact.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from maep.config.setting import setting
from maep.purifiers.base import Filter, in_own_type, require_images
from maep.purifiers.parts import in_fp32
from maep.purifiers.tiling import reflected_around

REACH = 2  # deviations on each side; what lies beyond has a seventh of the weight at most, and mostly another colour


@dataclass
class BilateralSettings:
    """Section `bilateral`. Above 8 pixels nothing but edges is left of a 32 x 32 image."""

    sigma_space: float = setting(1.0, "standard deviation of the weight by distance", unit="pixels", low=0.1, high=8.0)
    sigma_color: float = setting(
        0.1, "standard deviation of the weight by difference of colour (L2 over the channels)", unit="[0,1] pixels",
        above=0.0, high=10.0,
    )  # fmt: skip


class BilateralPurifier(Filter):
    """Each pixel becomes the mean of those around it, weighted by distance and colour; images are mirrored at their
    ends.
    """

    kind = "bilateral"
    Settings = BilateralSettings
    settings: BilateralSettings

    @property
    def reach(self) -> int:
        """As `Purifier.reach`: half the window."""
        return math.ceil(REACH * self.settings.sigma_space)

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: sums, a neighbour, its weight and products on the way."""
        return 9 * 12 * height * width

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape and range. Raises ValueError for another shape."""
        require_images(images)
        wide = in_fp32(images)
        with in_own_type(images):
            total, weights = torch.zeros_like(wide), torch.zeros_like(wide[:, :1])
            for neighbours, distance in self._neighbours(wide):
                colour = (neighbours - wide).square().sum(1, keepdim=True)
                exponent = distance / self.settings.sigma_space**2 + colour / self.settings.sigma_color**2
                weight = torch.exp(-0.5 * exponent)
                total, weights = total + weight * neighbours, weights + weight
            return (total / weights).clamp(0, 1).to(images.dtype)

    def _neighbours(self, images: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Of every pixel the one at each place of a round window, and the square of its distance."""
        (height, width), half = images.shape[2:], self.reach
        continued = reflected_around(images, half)
        for down, right in itertools.product(range(-half, half + 1), repeat=2):
            distance = down**2 + right**2
            if distance <= half**2:
                yield continued[:, :, half + down :, half + right :][:, :, :height, :width], distance
