"""PixelDefend: the likeliest image near the given one, chosen pixel by pixel (Song et al., ICLR 2018).

A PixelCNN++ learns the distribution of clean images; then every channel of every pixel becomes the most likely level
within a distance of its own, given those that were chosen before it. Choices have no gradient: attackers take the
identity's (BPDA), who leave 9 % of it (Athalye et al. 2018).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from maep.config.setting import setting
from maep.models.greedy_pixels import greedy_pixels
from maep.models.pixel_cnn import LEVELS, PixelCnn
from maep.purifiers.base import require_eager, require_images
from maep.purifiers.sections import USED
from maep.purifiers.whole_image import WholeImagePurifier


@dataclass
class PixelDefendSettings:
    """Section `pixeldefend`. The network is far smaller than the published one, whose sizes are 160 and 5 x 3 x 2."""

    features: int = setting(32, "channels of both stacks", low=1, high=2**12)
    layers: int = setting(5, "gated layers", low=0, high=256)
    components: int = setting(5, "logistic distributions in the mixture of a pixel", low=1, high=256)
    eps: float = setting(
        16 / 255, "farthest that a level is moved, in whole levels of 8 bits; the authors: twice an attack's budget",
        unit="[0,1] pixels", low=0.0, high=1.0, affects_result=USED,
    )  # fmt: skip


class PixelDefendPurifier(WholeImagePurifier):
    """Purifies images of any size whole, in one small step a pixel: the more images at a time, the cheaper each."""

    kind = "pixeldefend"
    Settings = PixelDefendSettings
    options = ("batch_tiles",)
    stages = ("shards", "classifier", "pretrain")
    network_kind = "likelihood"
    is_published = False
    is_differentiable = False
    is_iterative = True

    model: PixelCnn
    network: PixelDefendSettings

    @classmethod
    def build(cls, network: PixelDefendSettings) -> PixelCnn:
        """As `WholeImagePurifier.build`."""
        return PixelCnn(network.features, network.layers, network.components)

    def widest(self) -> int:
        """As `WholeImagePurifier.widest`: a gated layer's."""
        return 2 * self.network.features

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns levels of 8 bits in the same shape, without a gradient.

        Raises ValueError for another shape, and where it is exported.
        """
        require_images(images)
        require_eager(self)
        reach = round(self.network.eps * LEVELS)
        parts = images.split(self.images_at_once(*images.shape[2:]))
        return torch.cat([greedy_pixels(self.model, part, reach) for part in parts])
