"""The variance-preserving diffusion (VP), and the readings of a network that predicts its noise.

At time t of [0, 1] a picture x of [-1, 1] has become u = √ᾱ·x + √(1-ᾱ)·noise (Ho et al. 2020, in the continuous time
of Song et al. 2021). Rescaled by 1/√ᾱ the same is x + σ·noise, which is EDM's form (Karras et al. 2022).
"""

from collections.abc import Callable

import torch
from torch import Tensor

BETA_MIN, BETA_MAX = 0.1, 20.0  # of Song et al.; a thousandth of them are the betas of Ho et al.'s thousand steps
Noise = Callable[[Tensor, Tensor], Tensor]  # (u [N, C, H, W], t [N]) -> the noise in u that a network predicts


def beta(t: Tensor) -> Tensor:
    """The rate of the diffusion at times of [0, 1]; same shape."""
    return BETA_MIN + (BETA_MAX - BETA_MIN) * t


def growth(t: Tensor) -> Tensor:
    """-ln ᾱ, the integral of the rate up to times of [0, 1]; same shape."""
    return 0.5 * (BETA_MAX - BETA_MIN) * t.square() + BETA_MIN * t


def alpha_bar(t: Tensor) -> Tensor:
    """ᾱ, the share of the picture's variance that is left at times of [0, 1]; same shape."""
    return torch.exp(-growth(t))


def sigma_of(t: Tensor) -> Tensor:
    """EDM's σ at times of [0, 1], in units of [-1, 1] pixels; same shape."""
    return (1 / alpha_bar(t) - 1).sqrt()


def time_of(sigma: Tensor) -> Tensor:
    """The time at which EDM's σ (>= 0) is reached; the inverse of `sigma_of`."""
    growth = (1 + sigma.square()).log()  # -ln ᾱ, a square in t
    return ((BETA_MIN**2 + 2 * (BETA_MAX - BETA_MIN) * growth).sqrt() - BETA_MIN) / (BETA_MAX - BETA_MIN)


def per_image(values: Tensor) -> Tensor:
    """[N] as [N, 1, 1, 1], to multiply images with."""
    return values.view(-1, 1, 1, 1)


def at_time(u: Tensor, t: float) -> Tensor:
    """The same time for every image of u [N, C, H, W]: [N], of its type."""
    return torch.full((len(u),), t, dtype=u.dtype, device=u.device)


def diffused(pictures: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """u at times t [N]. pictures: [N, C, H, W] in [-1, 1]; noise: the same shape."""
    left = per_image(alpha_bar(t))
    return left.sqrt() * pictures + (1 - left).sqrt() * noise


def clean_estimate(u: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The picture [N, C, H, W] that u was made of, if its noise was `noise`."""
    left = per_image(alpha_bar(t))
    return (u - (1 - left).sqrt() * noise) / left.sqrt()


def score(predict: Noise, u: Tensor, t: Tensor) -> Tensor:
    """The gradient of the log-density of u at times t [N]; [N, C, H, W]."""
    return -predict(u, t) / per_image(1 - alpha_bar(t)).sqrt()


def denoised(predict: Noise, v: Tensor, sigma: Tensor) -> Tensor:
    """EDM's denoiser D(v, σ): the mean picture behind v = x + σ·noise. v: [N, C, H, W]; sigma: [N], above 0."""
    scale = per_image(sigma)
    return v - scale * predict(v / (1 + scale.square()).sqrt(), time_of(sigma))
