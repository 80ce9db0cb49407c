"""What makes the loss of a batch in the training of a classifier: cross-entropy, or what `classifier.training` says."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Progress:
    """Where a training is. seed, step: key of what is drawn. epoch: 0-based; epochs: of the whole training."""

    seed: int
    step: int
    epoch: int
    epochs: int


class BatchLoss:
    """Base of the losses. A step takes `begin`, the optimizer, and `end`; what is drawn is a function of `Progress`."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside network and optimizer, and is restored in place; by default nothing."""
        return {}

    def begin(self, images: Tensor, labels: Tensor, at: Progress) -> Tensor:
        """The mean loss of a batch, to be descended. images: [N, 3, H, W] in [0, 1]; labels: int64 [N]."""
        raise NotImplementedError

    def end(self) -> None:
        """Take back what `begin` did to the weights, after the optimizer's step. By default nothing."""


class CrossEntropy(BatchLoss):
    """The loss under `classifier.training=standard`. network: images [N, 3, H, W] in [0, 1] to logits [N, classes]."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def begin(self, images: Tensor, labels: Tensor, at: Progress) -> Tensor:
        """As `BatchLoss.begin`."""
        return F.cross_entropy(self.network(images), labels)
