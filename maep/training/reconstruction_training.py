"""SOAP's joint training with a decoder (Shi et al., ICLR 2021): class and image from the features of a noisy image.

Both terms see the same noise. That the class is told of the noisy image as well, as under the other two losses, is
inferred.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from maep.config.data_settings import ClassifierSettings
from maep.models.classifiers import Normalized
from maep.models.classifiers.reconstruction import ReconstructionClassifier
from maep.runtime.errors import fail
from maep.runtime.randomness import keyed_rng
from maep.training.batch_loss import BatchLoss, Progress

NOISE = 0.5  # deviation of the noise on each image


class ReconstructionTraining(BatchLoss):
    """The loss of one batch under `classifier.training=soap_reconstruction`.

    network: of an architecture with the decoder, or UserError. What is drawn is a function of seed and step.
    """

    def __init__(self, network: Normalized, settings: ClassifierSettings) -> None:
        if not isinstance(network.network, ReconstructionClassifier):
            fail(
                f"classifier.training=soap_reconstruction: {settings.arch} has no decoder; "
                f"choose one that has, such as classifier.arch=soap_resnet_autoencoder"
            )
        self.normalized, self.network, self.weight = network, network.network, settings.soap_weight

    def inputs(self, images: Tensor, at: Progress) -> Tensor:
        """images [N, 3, H, W] with noise, within [0, 1]."""
        rng = keyed_rng("classifier-noise", at.seed, at.step)
        noise = torch.from_numpy(rng.standard_normal(tuple(images.shape), dtype="float32"))
        return (images + NOISE * noise.to(images)).clamp(0, 1)

    def begin(self, images: Tensor, labels: Tensor, at: Progress) -> Tensor:
        """The loss of a batch, to be descended: the class of the noisy image, and the image without noise."""
        classes, decoded = self.network.both(self.normalized.normalize(self.inputs(images, at)))
        return F.cross_entropy(classes, labels) + self.weight * F.mse_loss(decoded.float(), images)
