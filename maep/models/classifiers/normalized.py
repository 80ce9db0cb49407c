"""Mean and deviation inside the module, so that attacks see pixels in [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """logits = network((images - mean) / std); images [N, 3, H, W] in [0, 1], logits [N, classes].

    mean, std: three numbers each, in [0, 1] pixels. They are no weights: files hold the keys of `network` alone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes]."""
        return self.network(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """What the network is given for images [N, 3, H, W] in [0, 1]: the same shape."""
        return (images - self.mean) / self.std
