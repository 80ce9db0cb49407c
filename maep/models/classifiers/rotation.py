"""SOAP's second head (Shi et al., ICLR 2021): by which quarter turn is this image rotated?

Keys: `resnet.` and those of the network, `fc1`, as in the published files.
"""

import torch
from torch import Tensor, nn

from maep.models.classifiers.resnet import CifarResNet

TURNS = 4  # by 0, 90, 180 and 270 degrees


class RotationClassifier(nn.Module):
    """A classifier whose features a linear layer asks for the turn. Its logits are those of the network alone."""

    def __init__(self, network: CifarResNet) -> None:
        super().__init__()
        self.resnet = network
        self.fc1 = nn.Linear(network.linear.in_features, TURNS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] → logits [N, classes]."""
        return self.resnet(x)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [N, 3, H, W] → logits [N, classes] and logits of the turn [N, 4]."""
        features = self.resnet.features(x)
        return self.resnet.linear(features), self.fc1(features)


def turned(images: Tensor) -> Tensor:
    """Square images [N, 3, H, H] in all four turns: [4 N, 3, H, H], all of one turn after all of another.

    Raises ValueError for others: their turns have not one shape.
    """
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"images {list(images.shape)}: only square ones can be told by their turns")
    return torch.cat([images.rot90(turn, (2, 3)) for turn in range(TURNS)])


def turn_labels(count: int, device: torch.device) -> Tensor:
    """What is right of `turned` for so many images: [4 · count]."""
    return torch.arange(TURNS, device=device).repeat_interleave(count)
