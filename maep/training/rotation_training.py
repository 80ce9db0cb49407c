"""SOAP's joint training with rotations (Shi et al., ICLR 2021): class and quarter turn from the same features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from maep.config.data_settings import ClassifierSettings
from maep.models.classifiers import Normalized
from maep.models.classifiers.rotation import RotationClassifier, turn_labels, turned
from maep.runtime.errors import fail
from maep.runtime.randomness import keyed_rng
from maep.training.batch_loss import BatchLoss, Progress

NOISE = 0.1  # deviation of the noise on each image


class RotationTraining(BatchLoss):
    """The loss of one batch under `classifier.training=soap_rotation`.

    network: of an architecture with the second head, or UserError. What is drawn is a function of seed and step.
    """

    def __init__(self, network: Normalized, settings: ClassifierSettings) -> None:
        if not isinstance(network.network, RotationClassifier):
            fail(
                f"classifier.training=soap_rotation: {settings.arch} has no head for turns; "
                f"choose one that has, such as classifier.arch=soap_resnet_rotation"
            )
        self.normalized, self.network, self.weight = network, network.network, settings.soap_weight

    def inputs(self, images: Tensor, at: Progress) -> Tensor:
        """images [N, 3, H, H] with noise, within [0, 1], in all four turns: [4 N, 3, H, H]."""
        rng = keyed_rng("classifier-turns", at.seed, at.step)
        noise = torch.from_numpy(rng.standard_normal(tuple(images.shape), dtype="float32"))
        return turned((images + NOISE * noise.to(images)).clamp(0, 1))

    def begin(self, images: Tensor, labels: Tensor, at: Progress) -> Tensor:
        """The loss of a batch, to be descended: the class of every turned copy, and which one it is."""
        classes, turns = self.network.both(self.normalized.normalize(self.inputs(images, at)))
        right = turn_labels(len(images), images.device)
        return F.cross_entropy(classes, labels.repeat(4)) + self.weight * F.cross_entropy(turns, right)
