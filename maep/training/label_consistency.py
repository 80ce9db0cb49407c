"""SOAP's joint training (Shi et al., ICLR 2021): a classifier that agrees with itself about two views of an image.

Cross-entropy of both views, and the mean squared difference of their logits, which is what purifying descends
(`maep.purifiers.soap`). As in the published code, which differs from its paper: the noise is only ever added, and both
views have it; the second view is never random.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep.config.data_settings import ClassifierSettings
from maep.purifiers.soap import second_view
from maep.runtime.randomness import keyed_rng
from maep.training.batch_loss import BatchLoss, Progress

NOISE = 0.1  # deviation of the noise whose positive half is added
CROP_SHARE = 0.75  # of a side, 24 of CIFAR's 32 pixels, that the first view keeps


class LabelConsistency(BatchLoss):
    """The loss of one batch under `classifier.training=soap`.

    network: images [N, 3, H, W] in [0, 1] to logits [N, classes]. What is drawn is a function of seed and step.
    """

    def __init__(self, network: nn.Module, settings: ClassifierSettings) -> None:
        self.network, self.weight, self.mirror = network, settings.soap_weight, settings.flip

    def views(self, images: Tensor, at: Progress) -> tuple[Tensor, Tensor]:
        """The two views that are to agree, each like `images`, [N, 3, H, W].

        The first is mirrored at random, image by image, where classes stand that, and cropped by one crop of the batch.
        """
        rng = keyed_rng("classifier-views", at.seed, at.step)
        noise = torch.from_numpy(rng.standard_normal(tuple(images.shape), dtype="float32"))
        noisy = images + (NOISE * noise).clamp(0, 1).to(images)
        is_mirrored = torch.from_numpy(rng.random(len(images)) < 0.5).to(images.device) & self.mirror
        first = torch.where(is_mirrored[:, None, None, None], noisy.flip(3), noisy)
        height, width = images.shape[2:]
        rows, columns = max(1, int(CROP_SHARE * height)), max(1, int(CROP_SHARE * width))
        top, left = (int(rng.integers(max(1, room))) for room in (height - rows, width - columns))  # 0 to 7 of CIFAR's
        cropped = first[:, :, top : top + rows, left : left + columns]
        return F.interpolate(cropped, (height, width), mode="nearest"), second_view(noisy, self.mirror)

    def begin(self, images: Tensor, labels: Tensor, at: Progress) -> Tensor:
        """The loss of a batch, to be descended."""
        first, second = self.network(torch.cat(self.views(images, at))).chunk(2)
        natural = F.cross_entropy(torch.cat([first, second]), labels.repeat(2))
        return natural + self.weight * F.mse_loss(first.float(), second.float())
