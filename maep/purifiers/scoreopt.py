"""ScoreOpt: descent of an image on what a denoiser would change of it (Zhang, Luo and Zhang, NeurIPS 2023).

    O   v = x;        v ← Adam step down ‖D(v + σn, σ) - v‖², σ and n anew at each step;    v
    N   v = x + σn;   v ← Adam step down ‖(v - D(v, σ))/σ - n‖², n the same throughout;     D(v, σ)

O with sigma=0.5, steps=5 and lr=0.1 is what others call likelihood maximisation (Chen et al. 2024). The
authors attack a stand-in, the denoiser asked once. Here the gradient goes through the steps as they are, the second
derivative of the network and Adam's moments included, which are part of the state. Adam's first steps are near the sign
of a gradient, so an exact derivative is near the identity's there, and BPDA's attacker about as strong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from maep.config.setting import setting
from maep.models.noise_schedule import denoised, per_image, time_of
from maep.purifiers.denoising import DenoiserPurifier, DenoiserSettings
from maep.purifiers.sections import USED
from maep.purifiers.stepwise import Step, gradient_within
from maep.runtime.errors import fail
from maep.runtime.keyed_noise import normal_of, uniform_of

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of Adam, as the authors'
# What the loss, a sum over pixels and channels, is divided by: their mean on CIFAR-10. With a mean over a larger image,
# or as with the authors over the batch too, gradients would come near EPSILON and the steps depend on either.
NUMBERS = 3 * 32 * 32
SIGMA_STREAM, NOISE_STREAM = 0, 1  # of a step's random numbers


@dataclass
class ScoreOptSettings(DenoiserSettings):
    """Section `scoreopt`. The defaults of its use are the authors' against an oblivious attacker; against BPDA they
    take sigma=0.5, steps=5 and lr=0.1. Theirs of N are steps=5 and lr=0.1, and sigma=0.5, steps=20 and lr=0.1 against
    an attacker who knows it.
    """

    variant: str = setting(
        "o", "what is descended: the image itself (o), or its noised version, which is denoised at the end (n)",
        choices=("o", "n"), affects_result=USED, added=True,
    )  # fmt: skip

    sigma: float = setting(
        0.25, "mean deviation of the noise, in units of [-1, 1] pixels", above=0.0, high=100.0, affects_result=USED
    )
    spread: float = setting(
        0.1, "of o, it is uniform in sigma ± spread, drawn at each step", low=0.0, high=100.0, affects_result=USED
    )
    steps: int = setting(20, "Adam steps", low=1, high=10_000, affects_result=USED)
    lr: float = setting(0.01, "their rate, in units of [-1, 1] pixels", above=0.0, high=10.0, affects_result=USED)


def adam_step(v: Tensor, first: Tensor, second: Tensor, gradient: Tensor, number: int, lr: float) -> Tensor:
    """One step of Adam from v and its moments, all [N, 3, H, W]: the next three, stacked to [N, 9, H, W].

    number: of the step, from 1. EPSILON is below the root, not beside it: so it has a derivative at 0.
    """
    first = BETA1 * first + (1 - BETA1) * gradient
    second = BETA2 * second + (1 - BETA2) * gradient.square()
    size = (second / (1 - BETA2**number) + EPSILON**2).sqrt()
    return torch.cat([v - lr * first / (1 - BETA1**number) / size, first, second], 1)


class ScoreOptPurifier(DenoiserPurifier):
    """Adam from the image as it is, or noised once. Noise and its deviation are drawn anew at every call, for each
    image its own; the authors draw one deviation for the whole batch.
    """

    kind = "scoreopt"
    Settings = ScoreOptSettings
    network: ScoreOptSettings

    @classmethod
    def check(cls, section: ScoreOptSettings) -> None:
        """Raise UserError where the noise is none, or more than the network has seen."""
        super().check(section)
        varies = section.variant == "o"
        if varies and section.spread >= section.sigma:
            fail(f"scoreopt.spread={section.spread:g}: must be below scoreopt.sigma={section.sigma:g}")
        most = section.sigma + (section.spread if varies else 0)
        cls.check_time(section, "sigma", section.sigma, float(time_of(torch.tensor(most))))

    def start(self, pictures: Tensor, seeds: Tensor) -> Tensor:
        """The pictures, of N noised, and Adam's moments, 0: [N, 9, H, W]."""
        if self.network.variant == "n":
            pictures = pictures + self.network.sigma * self._noise(seeds, 0, pictures)
        return torch.cat([pictures, torch.zeros_like(pictures), torch.zeros_like(pictures)], 1)

    def steps(self, seeds: Tensor) -> list[Step]:
        """Adam's."""
        return [partial(self._step, seeds, number) for number in range(self.network.steps)]

    def result(self, state: Tensor, seeds: Tensor) -> Tensor:
        """The pictures of the state, of N denoised."""
        v = state[:, :3]
        return denoised(self.model, v, self._sigma(v)) if self.network.variant == "n" else v

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: a derivative and its graph keep every block's maps, 11.3 times a forward pass's
        where a level has one block.
        """
        return 12 * self.network.blocks * super().bytes_taken(height, width)

    def _step(self, seeds: Tensor, number: int, state: Tensor, pictures: Tensor) -> Tensor:
        v, first, second = state.chunk(3, 1)
        if self.network.variant == "n":
            loss = partial(self._noise_loss, self._sigma(v), self._noise(seeds, 0, v))
        else:
            drawn = uniform_of(seeds, 2 * number + SIGMA_STREAM).to(state)
            sigma = self.network.sigma + self.network.spread * (2 * drawn - 1)
            loss = partial(self._picture_loss, sigma, self._noise(seeds, number, v))
        return adam_step(v, first, second, self._gradient(v, loss), 1 + number, self.network.lr)

    def _noise(self, seeds: Tensor, number: int, like: Tensor) -> Tensor:
        """Of a step; N has the first one's throughout."""
        return normal_of(seeds, 2 * number + NOISE_STREAM, like.shape[1:]).to(like)

    def _sigma(self, v: Tensor) -> Tensor:
        """N's deviation, for each image the same: [N]."""
        return torch.full((len(v),), self.network.sigma, dtype=v.dtype, device=v.device)

    def _picture_loss(self, sigma: Tensor, noise: Tensor, v: Tensor) -> Tensor:
        """O's: how far the denoiser moves v, noised by sigma [N]."""
        return (denoised(self.model, v + per_image(sigma) * noise, sigma) - v).square().sum() / NUMBERS

    def _noise_loss(self, sigma: Tensor, noise: Tensor, v: Tensor) -> Tensor:
        """N's: how far the noise that is found in v is from what was added."""
        return ((v - denoised(self.model, v, sigma)) / per_image(sigma) - noise).square().sum() / NUMBERS

    def _gradient(self, v: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Of the loss with respect to v, wherever it stands in it; with a graph where v has one."""
        return gradient_within(loss, v, self.model)
