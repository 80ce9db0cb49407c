"""Residual networks for 32×32 images: He et al.'s (2016, Sec. 4.2), a wide-stem variant of ResNet-32, and SOAP's.

Key names: `conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}[.shortcut.{0,1}], linear`.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (16, 32, 64)


def _conv3x3(inputs: int, outputs: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class PadShortcut(nn.Module):
    """He et al.'s option A: every other pixel, the added channels filled with zeros. It has no weights."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C + added, H/2, W/2]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


def _projection(inputs: int, outputs: int, stride: int, *, bias: bool) -> nn.Sequential:
    """Option B: a 1×1 convolution with batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=bias), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; `final_relu` says whether the sum is rectified.

    project: a strided or widening shortcut is a 1×1 convolution (option B). bias: of all its convolutions.
    """

    foldable = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, inputs: int, outputs: int, stride: int, *, project: bool, bias: bool, final_relu: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride, bias=bias)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs, bias=bias)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.final_relu = final_relu
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = (
                _projection(inputs, outputs, stride, bias=bias) if project else PadShortcut(outputs - inputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H/stride, W/stride]."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return F.relu(out, inplace=True) if self.final_relu else out


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for CIFAR: stages of 16, 32, 64 channels with n blocks each.

    wide_stem: the variant with a 64-channel stem, 1×1 convolution shortcuts, a ReLU after each stage instead of at
    each block's end, and a 4×4 average pool, which leaves 2×2×64 features of a 32×32 image.
    biased: the one of SOAP, of depth 14: 1×1 convolution shortcuts, and biases in all convolutions.
    """

    foldable = (("conv1", "bn1"),)
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, depth: int, num_classes: int, *, wide_stem: bool = False, biased: bool = False) -> None:
        super().__init__()
        stem = 64 if wide_stem else STAGES[0]
        self.wide_stem, self.biased = wide_stem, biased
        self.conv1 = _conv3x3(3, stem, bias=biased)
        self.bn1 = nn.BatchNorm2d(stem)
        for number, (inputs, outputs) in enumerate(zip((stem, *STAGES), STAGES, strict=False), start=1):
            stride = 1 if number == 1 else 2
            setattr(self, f"layer{number}", self._stage(inputs, outputs, stride, (depth - 2) // 6))
        self.linear = nn.Linear(STAGES[-1] * (4 if wide_stem else 1), num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
        block = partial(
            BasicBlock, project=self.wide_stem or self.biased, bias=self.biased, final_relu=not self.wide_stem
        )
        return nn.Sequential(block(inputs, outputs, stride), *(block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def maps(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] → the last map of features, [N, 64, ⌈H / 4⌉, ⌈W / 4⌉]."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
            x = F.relu(x) if self.wide_stem else x
        return x

    def pooled(self, maps: Tensor) -> Tensor:
        """What the last layer sees of the last map, before it is flattened."""
        return F.avg_pool2d(maps, 4) if self.wide_stem else maps.mean((2, 3))

    def features(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] → what the last layer sees, [N, features]; the wide stem wants H = W = 32."""
        return torch.flatten(self.pooled(self.maps(x)), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] → logits [N, classes]."""
        return self.linear(self.features(x))
