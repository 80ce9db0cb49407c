"""Convolutions: a stem before the transformer, a refinement after it, and a denoiser of nothing else."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvStem(nn.Sequential):
    """`depth` 3x3 convolutions with GELU: masked pixels [N, 3, H, W] to features [N, width, H/scale, W/scale].

    scale: they work on pixels unshuffled by this factor, at a `scale²`-th of the cost.
    """

    def __init__(self, width: int, depth: int, scale: int) -> None:
        layers: list[nn.Module] = []
        for i in range(depth):
            conv = nn.Conv2d(width if i else 3 * scale**2, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight)  # torch's own initialisation would halve what passes each of them
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            layers += [conv, nn.GELU()]
        super().__init__(*layers)
        self.scale = scale

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: [N, 3, H, W], `scale` dividing H and W. Returns [N, width, H/scale, W/scale]."""
        unshuffled = F.pixel_unshuffle(pixels, self.scale) if self.scale > 1 else pixels
        return super().forward(unshuffled.contiguous(memory_format=torch.channels_last))


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), without normalisation; starts near the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        for conv, gain in ((self.conv1, 1.0), (self.conv2, 0.1)):
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            conv.weight.data.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, width, H, W]. Returns the same shape."""
        return x + self.conv2(F.relu(self.conv1(x)))


class Refinement(nn.Module):
    """Residual convolutions that correct the decoder's prediction, given also the masked input.

    width, depth: channels and residual blocks. scale: they work on pixels unshuffled by this factor.
    Predicts 0 at first: its last convolution starts at zero.
    """

    def __init__(self, width: int, depth: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(6 * scale**2, width, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(depth)])
        self.tail = nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def forward(self, masked: Tensor, decoded: Tensor) -> Tensor:
        """masked: [N, 3, H, W] in [-1, 1]; decoded: the same shape; `scale` divides H and W. Returns that shape."""
        x = F.pixel_unshuffle(torch.cat([2 * masked, decoded], dim=1), self.scale)
        x = self.tail(self.blocks(self.head(x.contiguous(memory_format=torch.channels_last))))
        return F.pixel_shuffle(x, self.scale).to(decoded.dtype)


class ResidualDenoiser(nn.Module):
    """x + unit · f(x) with f of 3x3 convolutions alone: [N, 3, H, W] in [0, 1] to the same shape, not clipped.

    f are residual blocks without normalisation (EDSR, Lim et al. 2017) and predicts the noise, not the image (DnCNN,
    Zhang et al. 2017). width, depth: channels and blocks. scale: they work on pixels unshuffled by this factor (FFDNet,
    Zhang et al. 2018); sides that it does not divide are continued by their last pixels. unit: of what f predicts, in
    [0, 1] pixels. Predicts 0 at first: its last convolution starts at zero.
    """

    def __init__(self, width: int, depth: int, scale: int, unit: float) -> None:
        super().__init__()
        self.scale, self.unit = scale, unit
        self.head = nn.Conv2d(3 * scale**2, width, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(depth)])
        self.tail = nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]; visible: None, since it sees whole images. Returns the same shape.

        Raises ValueError for a mask.
        """
        if visible is not None:
            raise ValueError("this network sees whole images; give visible=None")
        height, width = images.shape[2:]
        down, across = (-side % self.scale for side in (height, width))
        pixels = F.pad(2 * images - 1, (0, across, 0, down), mode="replicate")
        x = F.pixel_unshuffle(pixels, self.scale).contiguous(memory_format=torch.channels_last)
        noise = F.pixel_shuffle(self.tail(self.blocks(self.head(x))), self.scale)[:, :, :height, :width]
        return images + self.unit * noise.to(images.dtype)
