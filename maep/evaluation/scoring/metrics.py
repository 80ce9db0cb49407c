"""Numbers of a report: accuracies with intervals, and the likeness of images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maep.runtime.torchvision_shim import declare_torchvision_operators

Z95 = 1.959963984540054  # of a standard normal variable, 95 % lie within ± this
# Equal images have no finite PSNR. 100 dB is a mean squared error of 1e-10, well below an 8-bit step's 1.3e-6 at 59 dB.
PSNR_CAP = 100.0
# Images compared at a time: SSIM keeps five filtered copies of each, which for 64 images of 224 x 224 is 190 MB.
SLICE = 64


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion, as shares in [0, 1].

    Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n}")
    share, square = successes / n, Z95**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half) if successes < n else 1.0


def count_right(predictions: Sequence[int], labels: Sequence[int]) -> int:
    """How many predictions equal their labels."""
    return sum(prediction == label for prediction, label in zip(predictions, labels, strict=True))


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB: [N].

    images, reference: [N, 3, H, W] in [0,1]. Equal images, infinitely alike, count as 100 dB, so that means are
    finite.
    """
    declare_torchvision_operators()
    # Takes seconds to import, which only reports need.
    from torchmetrics.functional.image import peak_signal_noise_ratio

    parts = zip(images.split(SLICE), reference.split(SLICE), strict=True)
    values = [
        peak_signal_noise_ratio(image, clean, data_range=1.0, reduction="none", dim=(1, 2, 3)) for image, clean in parts
    ]
    return torch.cat(values).clamp(max=PSNR_CAP)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each image (11×11 Gaussian window, sigma 1.5): [N].

    images, reference: [N, 3, H, W] in [0,1], H and W at least 6.
    """
    declare_torchvision_operators()
    from torchmetrics.functional.image import structural_similarity_index_measure

    parts = zip(images.split(SLICE), reference.split(SLICE), strict=True)
    values = [
        structural_similarity_index_measure(image, clean, data_range=1.0, reduction="none") for image, clean in parts
    ]
    return torch.cat([value.reshape(-1) for value in values])  # type: ignore[union-attr]


def distances(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """L∞ and L2 distance of each image from its reference: ([N], [N]), in [0,1] pixels."""
    difference = (images - reference).flatten(1)
    return difference.abs().amax(1), difference.norm(dim=1)


def energies(purified: Tensor, attacked: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """What a purifier did to each image's perturbation δ = attacked - clean: ([N], [N]), NaN where there is none.

    The error that is left, purified - clean, is split into its part along δ and the rest. First: share of δ's
    energy that is gone from along δ (1: all; below 0: it grew). Second: energy of the rest, what the purifier
    added, in units of δ's. All images [N, 3, H, W] in [0,1].
    """
    delta, error = (attacked - clean).flatten(1).double(), (purified - clean).flatten(1).double()
    energy = delta.square().sum(1)
    along = (error * delta).sum(1) / energy
    return 1 - along.square(), (error - along[:, None] * delta).square().sum(1) / energy


def purified_distances(clean: Tensor, adversarial: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """‖P(x) − x‖ and ‖P(x_a) − x‖ of each image: mean absolute difference in [0,1] pixels, ([N], [N]) (Sec. 4.2).

    clean, adversarial: P(x) and P(x_a), images: x, all [N, 3, H, W] in [0,1].
    """
    first, second = ((purified - images).abs().flatten(1).mean(1) for purified in (clean, adversarial))
    return first, second


def directions_cosine(clean: Tensor, adversarial: Tensor, images: Tensor, attacked: Tensor) -> Tensor:
    """Cosine between the ways that a clean image and its adversarial one are moved, P(x) − x and P(x_a) − x_a: [N].

    The first decides on clean, the second on robust accuracy (Sec. 4.2). NaN where either is not moved at all.
    clean, adversarial: P(x) and P(x_a), images: x, attacked: x_a, all [N, 3, H, W] in [0,1].
    """
    first, second = (clean - images).flatten(1).double(), (adversarial - attacked).flatten(1).double()
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
