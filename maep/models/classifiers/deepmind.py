"""DeepMind's networks for CIFAR (Gowal et al. 2020, Rebuffi et al. 2021), with RobustBench's key names.

They are pre-activation networks with SiLU, whose strided convolutions are padded as TensorFlow pads: below and to the
right alone. The same weights in a symmetrically padded network give a plausible and wrong accuracy.

Keys of the wide one: `init_conv, layer.{0,1,2}.block.{i}.{batchnorm_0,conv_0,batchnorm_1,conv_1}[.shortcut],
batchnorm, logits`; of PreAct-18: `conv_2d, layer_{0..3}.{0,1}.{batchnorm_0,conv_2d_1,batchnorm_1,conv_2d_2}[.shortcut],
batchnorm, logits`.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def _padded(x: Tensor, stride: int) -> Tensor:
    """One pixel around x [N, C, H, W] before a 3 x 3 convolution; below and right alone where it strides."""
    return F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


def _conv(inputs: int, outputs: int, stride: int = 1, side: int = 3, padding: int = 0) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride=stride, padding=padding, bias=False)


class WideBlock(nn.Module):
    """bn-silu-conv twice; the shortcut is a 1 x 1 convolution of the activated input where the widths differ."""

    foldable = (("conv_0", "batchnorm_1"),)

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_0 = _conv(inputs, outputs, stride)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_1 = _conv(outputs, outputs, padding=1)
        self.shortcut = _conv(inputs, outputs, stride, side=1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H/stride, W/stride]."""
        activated = F.silu(self.batchnorm_0(x))
        out = self.conv_1(F.silu(self.batchnorm_1(self.conv_0(_padded(activated, self.stride)))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class WideGroup(nn.Module):
    """`blocks` blocks of one width; only the first strides."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        others = (WideBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        self.block = nn.Sequential(WideBlock(inputs, outputs, stride), *others)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H/stride, W/stride]."""
        return self.block(x)


class DeepMindWideResNet(nn.Module):
    """WRN-depth-width: depth 6n + 4, groups of 16, 32, 64 channels times `width`; as many parameters as WideResNet."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks, channels = (depth - 4) // 6, (16 * width, 32 * width, 64 * width)
        self.init_conv = _conv(3, 16, padding=1)
        self.layer = nn.Sequential(
            WideGroup(blocks, 16, channels[0], 1),
            WideGroup(blocks, channels[0], channels[1], 2),
            WideGroup(blocks, channels[1], channels[2], 2),
        )
        self.batchnorm = nn.BatchNorm2d(channels[2])
        self.logits = nn.Linear(channels[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] → logits [N, classes]."""
        return self.logits(F.silu(self.batchnorm(self.layer(self.init_conv(x)))).mean((2, 3)))


class PreActBlock(nn.Module):
    """bn-silu-conv twice; the shortcut of a strided block is a 3 x 3 convolution of the input before activation."""

    foldable = (("conv_2d_1", "batchnorm_1"),)

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_2d_1 = _conv(inputs, outputs, stride)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_2d_2 = _conv(outputs, outputs, padding=1)
        self.shortcut = _conv(inputs, outputs, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H/stride, W/stride]."""
        activated = F.silu(self.batchnorm_0(x))
        out = self.conv_2d_2(F.silu(self.batchnorm_1(self.conv_2d_1(_padded(activated, self.stride)))))
        return out + (x if self.shortcut is None else self.shortcut(_padded(x, self.stride)))


class DeepMindPreActResNet18(nn.Module):
    """Four groups of two blocks with 64, 128, 256 and 512 channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv_2d = _conv(3, 64, padding=1)
        for number, outputs in enumerate((64, 128, 256, 512)):
            inputs, stride = (64, 1) if number == 0 else (outputs // 2, 2)
            blocks = PreActBlock(inputs, outputs, stride), PreActBlock(outputs, outputs, 1)
            setattr(self, f"layer_{number}", nn.Sequential(*blocks))
        self.batchnorm = nn.BatchNorm2d(512)
        self.logits = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] → logits [N, classes]."""
        x = self.conv_2d(x)
        for number in range(4):
            x = getattr(self, f"layer_{number}")(x)
        return self.logits(F.silu(self.batchnorm(x)).mean((2, 3)))
