"""The schedules that published denoisers were trained on, and where on them a time of ours lies.

All of them are variance preserving: what a network must be told is how much of the picture is left, ᾱ. So a network
of any of these schedules predicts the noise at a time of `maep.models.noise_schedule`, asked at the step of its own
that has the same ᾱ; between two steps at the share of the way, in ln ᾱ.
"""

import math

import torch
from torch import Tensor, nn

from maep.models.noise_schedule import growth

LINEAR_BETAS = (1e-4, 2e-2)  # Ho et al.'s first and last, of 1000 steps
COSINE_OFFSET, LARGEST_BETA = 0.008, 0.999  # Nichol and Dhariwal's, of 4000 steps


def linear_steps(count: int = 1000) -> Tensor:
    """-ln ᾱ after each step of Ho et al. (2020), float64 [count], rising."""
    return -torch.log1p(-torch.linspace(*LINEAR_BETAS, count, dtype=torch.float64)).cumsum(0)


def cosine_steps(count: int = 4000) -> Tensor:
    """-ln ᾱ after each step of Nichol and Dhariwal (2021), float64 [count], rising."""
    times = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    left = ((times + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).cos().square()
    return -torch.log1p(-(1 - left[1:] / left[:-1]).clamp(max=LARGEST_BETA)).cumsum(0)


class StepNumbers(nn.Module):
    """Times [N] of [0, 1] to the numbers that a network is told in their place, [N], from 0 to (count - 1) * scale.

    steps: -ln ᾱ after each step of its schedule, rising; earlier times than the first step's get its number.
    """

    steps: Tensor

    def __init__(self, steps: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("steps", steps, persistent=False)

    def forward(self, times: Tensor) -> Tensor:
        """times: [N], of any floating type, which the numbers have as well."""
        wanted = growth(times.to(self.steps.dtype))
        after = torch.searchsorted(self.steps, wanted).clamp(1, len(self.steps) - 1)
        before, span = self.steps[after - 1], self.steps[after] - self.steps[after - 1]
        numbers = (after - 1 + (wanted - before) / span).clamp(0, len(self.steps) - 1)
        return (self.scale * numbers).to(times.dtype)
