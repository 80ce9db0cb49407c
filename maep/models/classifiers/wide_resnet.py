"""Wide residual networks (Zagoruyko & Komodakis 2016), pre-activation, with RobustBench's key names.

Keys: `conv1, block{1,2,3}.layer.{i}.{bn1,conv1,bn2,conv2,convShortcut}, bn1, fc`.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class PreActivationBlock(nn.Module):
    """bn-relu-conv twice; the shortcut is a 1×1 convolution of the activated input where the widths differ."""

    foldable = (("conv1", "bn2"),)

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H/stride, W/stride]."""
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))


class Stage(nn.Module):
    """`blocks` blocks of one width; only the first strides."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        others = (PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(PreActivationBlock(inputs, outputs, stride), *others)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H/stride, W/stride]."""
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-width: depth 6n + 4, stages of 16, 32, 64 channels times `width`."""

    # A stage that the code of TRADES made beside the others and left out of its forward; it is in the files of
    # Zhang2019Theoretically, Wu2020Adversarial_extra and others.
    never_called = ("sub_block1.",)

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks, channels = (depth - 4) // 6, (16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(blocks, 16, channels[0], 1)
        self.block2 = Stage(blocks, channels[0], channels[1], 2)
        self.block3 = Stage(blocks, channels[1], channels[2], 2)
        self.bn1 = nn.BatchNorm2d(channels[2])
        self.fc = nn.Linear(channels[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] → logits [N, classes]."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x), inplace=True).mean((2, 3)))
