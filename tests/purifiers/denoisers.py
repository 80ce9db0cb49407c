"""Small purifiers on a denoiser and pictures for them, in float64, so that gradients can be compared; a denoiser whose
every answer is known.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from maep.config.load import load_settings
from maep.models.noise_schedule import alpha_bar, per_image
from maep.purifiers.base import Purifier
from maep.purifiers.denoising import DenoiserPurifier

P = TypeVar("P", bound=DenoiserPurifier)
SPREAD = 0.5  # deviation of the pictures N(0, SPREAD² I) of `OfGaussians`


class OfGaussians(nn.Module):
    """The mean noise in u [N, 3, H, W] at times t [N], of pictures N(0, SPREAD² I)."""

    factor = 1

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        left = per_image(alpha_bar(t))
        return u * (1 - left).sqrt() / (SPREAD**2 * left + 1 - left)


def random_purifier(kind: type[P], words: Sequence[str]) -> P:
    """Of random weights that do not predict 0, frozen. words: settings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = kind.from_settings(load_settings(None, words))
        nn.init.normal_(made.model.tail.weight, std=0.05)
    return made.double().eval().requires_grad_(False)


def pictures(count: int = 3, side: int = 8) -> Tensor:
    """Always the same, [count, 3, side, side] in [0, 1]."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_same_in_inference_mode(subject: Purifier, images: Tensor) -> None:
    """That it purifies in torch.inference_mode, whose tensors autograd refuses, to the same bits."""
    subject.reseed(0)
    expected = subject(images)
    with torch.inference_mode():
        subject.reseed(0)
        assert torch.equal(subject(images), expected)
