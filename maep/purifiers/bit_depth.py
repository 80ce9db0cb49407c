"""Bit-depth reduction as a purifier: fewer levels a channel, in which small perturbations vanish.

Xu, Evans and Qi 2018 ("Feature Squeezing") round to the nearest of 2^b levels; Guo et al. 2018 cut bits off. Steps have
no gradient: an attacker takes the identity's (BPDA, Athalye et al. 2018).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from maep.config.setting import setting
from maep.purifiers.base import Filter, require_images
from maep.purifiers.parts import in_fp32


@dataclass
class BitDepthSettings:
    """Section `bit_depth`. 8 bits would be what images are stored in."""

    bits: int = setting(4, "bits a channel", unit="bits", low=1, high=7)
    rounding: str = setting(
        "floor",
        "floor: the bits below are cut off, x to floor(x*2^b)/2^b; nearest: x to round(x*(2^b-1))/(2^b-1)",
        choices=("floor", "nearest"),
    )


class BitDepthPurifier(Filter):
    """Each value becomes one of 2^bits levels; with rounding=floor, 1.0 stays 1.0 beside them."""

    kind = "bit_depth"
    Settings = BitDepthSettings
    settings: BitDepthSettings
    is_differentiable = False

    @property
    def reach(self) -> int:
        """As `Purifier.reach`: none."""
        return 0

    @torch.no_grad()
    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape and range, without a gradient.

        Raises ValueError for another shape.
        """
        require_images(images)
        levels, exact = 2**self.settings.bits, in_fp32(images)
        if self.settings.rounding == "floor":
            return ((exact * levels).floor() / levels).to(images.dtype)
        return ((exact * (levels - 1)).round() / (levels - 1)).to(images.dtype)
