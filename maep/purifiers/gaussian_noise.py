"""Gaussian noise as a purifier: drowns the perturbation, and with it some of the image.

As ART's GaussianAugmentation at test time; an attacker who averages over draws (EOT) sees through it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maep.config.setting import setting
from maep.purifiers.base import RandomFilter, require_eager, require_images


@dataclass
class GaussianNoiseSettings:
    """Section `gaussian_noise`. The default is as large as the usual budget of an attack on CIFAR-10."""

    sigma: float = setting(8 / 255, "standard deviation of the noise", unit="[0,1] pixels", above=0.0)


class GaussianNoisePurifier(RandomFilter):
    """Adds noise to every pixel, anew at every call, and clips to [0, 1]."""

    kind = "gaussian_noise"
    Settings = GaussianNoiseSettings
    settings: GaussianNoiseSettings

    def purify(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]. Returns the same shape and range.

        Raises ValueError for another shape, and where it is exported.
        """
        require_images(images)
        require_eager(self)
        noise = torch.from_numpy(self.rng.standard_normal(tuple(images.shape), dtype=np.float32))
        return (images + self.settings.sigma * noise.to(images)).clamp(0, 1)
