"""ComDefend: images are compressed to a few bits a pixel and drawn anew from them (Jia et al., CVPR 2019).

Noise on the code in training leaves a bit its meaning only where the encoder is sure of it, so that small perturbations
change none. Bits have no gradient: attackers take the identity's (BPDA). Written from a description of the networks
and of the loss. The published weights are NumPy lists of another framework's layout, and are not read.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from maep.config.schema import PurifySettings, setting
from maep.models.code_network import CodeNetwork
from maep.purifiers.base import require_eager, require_images
from maep.purifiers.registry import USED
from maep.purifiers.whole_image import WholeImagePurifier
from maep.runtime.errors import fail
from maep.runtime.randomness import keyed_rng


@dataclass
class ComDefendSettings:
    """Section `comdefend`. The defaults are the published networks of 783 thousand parameters each."""

    widths: list[int] = setting(
        [16, 32, 64, 128, 256, 128, 64, 32], "channels of the encoder's layers before the code; the decoder's the same "
        "in the other order", low=1, high=2**12,
    )  # fmt: skip
    bits: int = setting(12, "bits a pixel of the code", unit="bits", low=1, high=2**10)
    noise: float = setting(20.0, "deviation of the noise on the logits of bits in training", low=0.0, high=1e6)
    test_noise: float = setting(
        20.0, "the same where it purifies, as in the authors' PyTorch code; 0: none, as in their TensorFlow code",
        low=0.0, high=1e6, affects_result=USED,
    )  # fmt: skip


class ComDefendPurifier(WholeImagePurifier):
    """Purifies images of any size whole: decodes their bits, of logits with noise that is drawn anew at every call."""

    kind = "comdefend"
    Settings = ComDefendSettings
    options = ("batch_tiles",)
    stages = ("shards", "classifier", "pretrain")
    network_kind = "code"
    is_published = False
    is_differentiable = False

    network: ComDefendSettings

    def __init__(self, model: CodeNetwork, network: ComDefendSettings, settings: PurifySettings) -> None:
        super().__init__(model, network, settings)
        self.reseed(0)

    @classmethod
    def check(cls, section: ComDefendSettings) -> None:
        """Raise UserError where the encoder has no layer before its code."""
        if not section.widths:
            fail("comdefend.widths=[]: expected at least one width, such as 32")

    @classmethod
    def build(cls, network: ComDefendSettings) -> CodeNetwork:
        """As `WholeImagePurifier.build`."""
        return CodeNetwork(network.widths, network.bits, network.noise)

    def widest(self) -> int:
        """As `WholeImagePurifier.widest`."""
        return max(self.network.bits, *self.network.widths)

    @property
    def is_random(self) -> bool:
        """Whether noise is drawn."""
        return bool(self.network.test_noise)

    def reseed(self, *key: int) -> None:
        """Start the noise at `key`; images draw one after another."""
        self._rng = keyed_rng("purifier", *key)

    @torch.no_grad()
    def purify(self, images: Tensor) -> Tensor:
        """As `WholeImagePurifier.purify`, without a gradient. Raises ValueError where one with noise is exported."""
        if not self.is_random:
            return super().purify(images)
        require_images(images)
        require_eager(self)
        return torch.cat([self._decoded(part) for part in images.split(self.images_at_once(*images.shape[2:]))])

    def _decoded(self, images: Tensor) -> Tensor:
        shape = (len(images), self.network.bits, *images.shape[2:])
        noise = torch.from_numpy(self._rng.standard_normal(shape, dtype=np.float32)).to(images)
        return cast(Tensor, self.model(images, self.network.test_noise * noise))
