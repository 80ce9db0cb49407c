"""ScoreOpt-O: descent of the image itself on what a denoiser would change of it (Zhang, Luo and Zhang, NeurIPS 2023).

    v ← Adam step down ‖D(v + σn, σ) - v‖², σ and n anew at each step

The authors attack a stand-in, the denoiser asked once. Here the gradient goes through the steps as they are, the second
derivative of the network and Adam's moments included, which are part of the state. Adam's first steps are near the sign
of a gradient, so an exact derivative is near the identity's there, and BPDA's attacker about as strong.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from maep.config.schema import setting
from maep.models.noise_schedule import denoised, per_image, time_of
from maep.purifiers.denoising import USED, DenoiserPurifier, DenoiserSettings
from maep.purifiers.stepwise import Step
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
    take sigma=0.5, steps=5 and lr=0.1.
    """

    sigma: float = setting(
        0.25, "mean deviation of the noise, in units of [-1, 1] pixels", above=0.0, high=100.0, affects_result=USED
    )
    spread: float = setting(
        0.1, "it is uniform in sigma ± spread, drawn at each step", low=0.0, high=100.0, affects_result=USED
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
    """Adam from the image as it is. Noise and its deviation are drawn anew at every call, for each image its own; the
    authors draw one deviation for the whole batch.
    """

    kind = "scoreopt"
    Settings = ScoreOptSettings
    network: ScoreOptSettings

    @classmethod
    def check(cls, section: ScoreOptSettings) -> None:
        """Raise UserError where the noise is none, or more than the network has seen."""
        super().check(section)
        if section.spread >= section.sigma:
            fail(f"scoreopt.spread={section.spread:g}: must be below scoreopt.sigma={section.sigma:g}")
        most = section.sigma + section.spread
        cls.check_time(section, "sigma", section.sigma, float(time_of(torch.tensor(most))))

    def start(self, pictures: Tensor, seeds: Tensor) -> Tensor:
        """The pictures, and Adam's moments, 0: [N, 9, H, W]."""
        return torch.cat([pictures, torch.zeros_like(pictures), torch.zeros_like(pictures)], 1)

    def steps(self, seeds: Tensor) -> list[Step]:
        """Adam's."""
        return [partial(self._step, seeds, number) for number in range(self.network.steps)]

    def result(self, state: Tensor, seeds: Tensor) -> Tensor:
        """The pictures of the state."""
        return state[:, :3]

    def bytes_taken(self, height: int, width: int) -> int:
        """As `Purifier.bytes_taken`: a derivative and its graph keep every block's maps, 11.3 times a forward pass's
        where a level has one block.
        """
        return 12 * self.network.blocks * super().bytes_taken(height, width)

    def _step(self, seeds: Tensor, number: int, state: Tensor, pictures: Tensor) -> Tensor:
        v, first, second = state.chunk(3, 1)
        drawn = uniform_of(seeds, 2 * number + SIGMA_STREAM).to(state)
        sigma = self.network.sigma + self.network.spread * (2 * drawn - 1)
        noise = normal_of(seeds, 2 * number + NOISE_STREAM, v.shape[1:]).to(state)
        return adam_step(v, first, second, self._gradient(v, sigma, noise), 1 + number, self.network.lr)

    def _gradient(self, v: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Of the loss with respect to v, through both of its places in it; with a graph where v has one."""
        # Not of v alone: in the forward pass of `stepwise` a view of what has a gradient has one by name only.
        tracked = torch.is_grad_enabled() and v.requires_grad
        with torch.enable_grad():
            at = v if tracked else v.detach().requires_grad_()
            loss = (denoised(self.model, at + per_image(sigma) * noise, sigma) - at).square().sum() / NUMBERS
            # Always with a graph: without one the same derivative may be computed in another order, to other bits.
            (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
        trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.model.parameters())
        return gradient if tracked or trained else gradient.detach()
