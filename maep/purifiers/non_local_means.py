"""Non-local means as a purifier (Buades, Coll and Morel 2005): a pixel is averaged with those that lie in like patches.

No weights, nothing drawn, gradients exact. Patches are compared pixel by pixel over all channels, each of its pixels
alike; the original weights its middle more.
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maep.config.setting import setting
from maep.purifiers.base import Filter, in_own_type, require_images
from maep.purifiers.parts import in_fp32
from maep.purifiers.tiling import reflected_around
from maep.runtime.errors import fail


@dataclass
class NonLocalMeansSettings:
    """Section `non_local_means`."""

    patch: int = setting(3, "side of the patches that are compared; odd", unit="pixels", low=1, high=15)
    window: int = setting(
        11, "side of the square around a pixel from which it is averaged; odd", unit="pixels", low=3, high=51
    )
    strength: float = setting(
        0.05,  # 0.1, usual for photographs, takes as much of a clean 32 x 32 image as a median does
        "h: a patch weighs exp(-d²/h²), where d² is the mean squared difference of its pixels",
        unit="[0,1] pixels", above=0.0, high=10.0,
    )  # fmt: skip


class NonLocalMeansPurifier(Filter):
    """Each pixel becomes the mean of a window, weighted by how like the patches around them are; images are mirrored
    at their ends.
    """

    kind = "non_local_means"
    Settings = NonLocalMeansSettings
    settings: NonLocalMeansSettings

    @classmethod
    def check(cls, section: NonLocalMeansSettings) -> None:
        """Raise UserError for a window or a patch that has no middle."""
        for name in ("patch", "window"):
            side = getattr(section, name)
            if side % 2 == 0:
                fail(f"non_local_means.{name}={side}: must be odd, such as {side + 1}")

    @property
    def reach(self) -> int:
        """As `Purifier.reach`: half the window, and half a patch beyond."""
        return self.settings.window // 2 + self.settings.patch // 2

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: sums, a neighbour, its patches' differences and products on the way."""
        return 12 * 12 * height * width

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape and range. Raises ValueError for another shape."""
        require_images(images)
        (height, width), half, margin = images.shape[2:], self.settings.window // 2, self.settings.patch // 2
        continued = reflected_around(in_fp32(images), self.reach)
        rows, columns = height + 2 * margin, width + 2 * margin
        own = continued[:, :, half:, half:][:, :, :rows, :columns]
        with in_own_type(images):
            total, weights = own.new_zeros(images.shape), own.new_zeros(len(images), 1, height, width)
            for top, left in itertools.product(range(2 * half + 1), repeat=2):
                patches = continued[:, :, top:, left:][:, :, :rows, :columns]
                difference = (patches - own).square().mean(1, keepdim=True)
                weight = torch.exp(-self._patch_mean(difference) / self.settings.strength**2)
                middles = patches[:, :, margin:, margin:][:, :, :height, :width]
                total, weights = total + weight * middles, weights + weight
            return (total / weights).clamp(0, 1).to(images.dtype)

    def _patch_mean(self, values: Tensor) -> Tensor:
        """Of every patch, [N, 1, H + 2·margin, W + 2·margin] → [N, 1, H, W]."""
        return F.avg_pool2d(values, self.settings.patch, stride=1)
