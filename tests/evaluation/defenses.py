"""Defenses that hide their gradients, as they were published and believed; and a classifier behind one, or undefended.

`CLASSIFIER=cifar10-resnet20.safetensors python -m maep evaluate --model tests.evaluation.defenses:jpeg --data SHARDS`
"""

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from maep.config.load import load_settings
from maep.data.shards import to_uint8
from maep.models.classifiers import load_classifier


class Rounding(nn.Module):
    """Pixels to the 256 levels of a file: it changes nothing that the eye sees, and has no slope anywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return (images * 255).round() / 255


class Jpeg(nn.Module):
    """Pixels through a JPEG file, as defenses of 2018 did."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self._through_file(image) for image in images.detach()])

    def _through_file(self, image: Tensor) -> Tensor:
        buffer = io.BytesIO()
        Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=75)
        with Image.open(buffer) as decoded:
            return torch.from_numpy(np.array(decoded)).permute(2, 0, 1).float() / 255


class FalseGradient(nn.Module):
    """Four levels a pixel, with a gradient that pretends to be the identity's."""

    def forward(self, images: Tensor) -> Tensor:
        return images + ((images * 3).round() / 3 - images).detach()


class Noise(nn.Module):
    """Noise from torch's own generator."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.2 * torch.randn_like(images)


def undefended() -> nn.Module:
    """CIFAR-10's ResNet-20, whose weights the environment variable CLASSIFIER names, without a defense."""
    weights = Path(os.environ["CLASSIFIER"])
    return load_classifier(load_settings("cifar10_cpu").classifier, 10, weights)


def rounding() -> nn.Module:
    """It behind 8-bit rounding."""
    return nn.Sequential(Rounding(), undefended()).eval()


def jpeg() -> nn.Module:
    """It behind JPEG."""
    return nn.Sequential(Jpeg(), undefended()).eval()
