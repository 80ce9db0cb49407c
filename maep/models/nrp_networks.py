"""NRP's two networks (Naseer et al., CVPR 2020): ESRGAN's generator without upsampling, and a plain residual one.

The names of the tensors are those of the published files.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESIDUAL = 0.2  # share of what a block computes that is added to what it was given
DENSE_SLOPE, PLAIN_SLOPE = 0.2, 0.1  # of the leaky rectifiers below zero


def convolution(before: int, after: int) -> nn.Conv2d:
    """3 x 3, same size."""
    return nn.Conv2d(before, after, 3, padding=1)


class DenseBlock(nn.Module):
    """Five convolutions, each of all that the ones before it made."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for number in range(1, 5):
            setattr(self, f"conv{number}", convolution(features + (number - 1) * growth, growth))
        self.conv5 = convolution(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, features, H, W]. Returns the same shape."""
        parts = [x]
        for number in range(1, 5):
            parts.append(F.leaky_relu(getattr(self, f"conv{number}")(torch.cat(parts, 1)), DENSE_SLOPE))
        return x + RESIDUAL * cast(Tensor, self.conv5(torch.cat(parts, 1)))


class DenseTrunkBlock(nn.Module):
    """Three dense blocks, residual together as well (RRDB of ESRGAN)."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.RDB1, self.RDB2, self.RDB3 = (DenseBlock(features, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, features, H, W]. Returns the same shape."""
        return x + RESIDUAL * cast(Tensor, self.RDB3(self.RDB2(self.RDB1(x))))


class PlainBlock(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (convolution(features, features) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, features, H, W]. Returns the same shape."""
        return x + cast(Tensor, self.conv2(F.relu(self.conv1(x))))


class DenseNetwork(nn.Module):
    """`NRP`: images [N, 3, H, W] in [0, 1] to the same shape, not clipped. There is no path around the trunk."""

    def __init__(self, blocks: int = 23, features: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.conv_first = convolution(3, features)
        self.RRDB_trunk = nn.Sequential(*[DenseTrunkBlock(features, growth) for _ in range(blocks)])
        self.trunk_conv = convolution(features, 3)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """images: [N, 3, H, W]; visible: None. Returns the same shape. Raises ValueError for a mask."""
        require_whole(visible)
        return cast(Tensor, self.trunk_conv(self.RRDB_trunk(self.conv_first(images))))


class PlainNetwork(nn.Module):
    """`NRP_resG`: images [N, 3, H, W] in [0, 1] to the same shape, not clipped."""

    def __init__(self, blocks: int = 23, features: int = 64) -> None:
        super().__init__()
        self.conv_first = convolution(3, features)
        self.recon_trunk = nn.Sequential(*[PlainBlock(features) for _ in range(blocks)])
        self.conv_last = convolution(features, 3)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """images: [N, 3, H, W]; visible: None. Returns the same shape. Raises ValueError for a mask."""
        require_whole(visible)
        first = F.leaky_relu(self.conv_first(images), PLAIN_SLOPE)
        return cast(Tensor, self.conv_last(self.recon_trunk(first)))


def require_whole(visible: Tensor | None) -> None:
    """Raise ValueError for a mask."""
    if visible is not None:
        raise ValueError("this network sees whole images; give visible=None")
