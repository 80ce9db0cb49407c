"""SOAP's decoder (Shi et al., ICLR 2021): the image again, from the features that the classes are told by.

The authors decode a network for MNIST; this decoder, of the map of features that a ResNet for CIFAR pools, is ours.
"""

import torch
from torch import Tensor, nn

from maep.models.classifiers.resnet import CifarResNet

WIDTHS = (64, 32, 16)  # channels of the map, and after each of two steps to the image's resolution


class ReconstructionClassifier(nn.Module):
    """A classifier with a decoder of its last map. Its logits are those of the network alone.

    Keys: `resnet.` and those of the network, `decoder`.
    """

    def __init__(self, network: CifarResNet) -> None:
        super().__init__()
        self.resnet = network
        map_width, middle, fine = WIDTHS
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(map_width, middle, 4, stride=2, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(middle, fine, 4, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(fine, 3, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] → logits [N, classes]."""
        return self.resnet(x)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [N, 3, H, W] → logits [N, classes] and images of [0, 1], [N, 3, H, W]."""
        features = self.resnet.maps(x)
        decoded = self.decoder(features)[:, :, : x.shape[2], : x.shape[3]]  # strides round odd sides up
        return self.resnet.linear(torch.flatten(self.resnet.pooled(features), 1)), decoded
