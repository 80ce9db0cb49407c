"""NRP's networks as a purifier (Naseer et al., CVPR 2020), with the authors' weights or trained here.

As theirs, its training needs no label: the run's images are moved farthest in a feature map of the classifier
(`attack.method=ssp`), where theirs takes VGG-16's, and are to have their features again (`objective.name=feature`) and,
with `objective.gan_weight`, to look clean to a discriminator. The network is deterministic, and whoever follows its
gradients breaks it, as its authors say. Their dynamic variant adds noise first (`purify.noise=0.05`), at most 16/255
of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from maep.config.evaluation_settings import PurifySettings
from maep.config.setting import setting
from maep.models.nrp_networks import DenseNetwork, PlainNetwork
from maep.purifiers.base import require_eager, section_of
from maep.purifiers.whole_image import WholeImagePurifier
from maep.runtime.randomness import keyed_rng

NOISE_BOUND = 16 / 255  # of the dynamic variant, as published


@dataclass
class NrpSettings:
    """Section `nrp`. The defaults are the published `NRP_resG`; the bounds keep a saved one from taking the machine."""

    network: str = setting(
        "plain", "plain: NRP_resG, 1.7 million parameters; dense: NRP, 16.6", choices=("plain", "dense")
    )
    blocks: int = setting(23, "blocks of the trunk", low=0, high=256)
    features: int = setting(64, "channels of the trunk", low=1, high=2**12)
    growth: int = setting(32, "channels that each convolution of a dense block adds", low=1, high=2**12)


class NrpPurifier(WholeImagePurifier):
    """Purifies images of any size whole, in `purify.passes`; with `purify.noise`, clipped to 16/255, before each."""

    kind = "nrp"
    Settings = NrpSettings
    options = ("batch_tiles", "passes", "noise")

    def __init__(self, model: nn.Module, network: NrpSettings, settings: PurifySettings) -> None:
        super().__init__(model, network, settings)
        self.reseed(0)

    @property
    def is_random(self) -> bool:
        """Whether noise is drawn."""
        return bool(self.settings.noise)

    def reseed(self, *key: int) -> None:
        """Start the noise at `key`; images draw one after another, for all passes of one before the next one's."""
        self._rng = keyed_rng("purifier", *key)

    def purify(self, images: Tensor) -> Tensor:
        """As `WholeImagePurifier.purify`. Raises ValueError also where one that draws noise is exported."""
        if not self.settings.noise:
            return super().purify(images)
        require_eager(self)
        shape = (len(images), self.settings.passes, *images.shape[1:])
        noise = self.settings.noise * torch.from_numpy(self._rng.standard_normal(shape, dtype=np.float32))
        for number in range(self.settings.passes):
            shift = noise[:, number].clamp(-NOISE_BOUND, NOISE_BOUND).to(images)
            images = self._once((images + shift).clamp(0, 1)).clamp(0, 1)
        return images

    def widest(self) -> int:
        """As `WholeImagePurifier.widest`: the trunk, and in it the last convolution of a dense block."""
        dense = self.network.network == "dense"
        return int(self.network.features + (4 * self.network.growth if dense else 0))

    @classmethod
    def build(cls, network: NrpSettings) -> nn.Module:
        """As `WholeImagePurifier.build`."""
        if network.network == "plain":
            return PlainNetwork(network.blocks, network.features)
        return DenseNetwork(network.blocks, network.features, network.growth)

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor], path: Path) -> NrpSettings:
        """As `WholeImagePurifier.described`."""
        first, is_plain = tensors.get("conv_first.weight"), "conv_last.weight" in tensors
        ending = ".conv1.weight" if is_plain else ".RDB1.conv1.weight"
        grown = [tensor for name, tensor in tensors.items() if name.endswith(ending)]
        if first is None or not grown:
            return NrpSettings()
        values = {"network": "plain" if is_plain else "dense", "blocks": len(grown), "features": len(first)}
        return section_of(NrpSettings, values if is_plain else {**values, "growth": len(grown[0])}, str(path))
