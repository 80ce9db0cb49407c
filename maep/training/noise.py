"""Noise in place of an attack: the noisy images of the objective `nim`, each a function of its key alone.

You et al. 2023 (NIM-MAE): every image has a deviation of its own, drawn from a gamma distribution. Keys are those of
(epoch, sample), so a resumed training, also on other numbers of processes, sees the same noise.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maep.config.training_settings import ObjectiveSettings
from maep.runtime.device import upload
from maep.runtime.keyed_noise import keyed_uniform
from maep.runtime.randomness import WORD, keyed_rngs

GAMMA_SHAPE = 25.0  # a deviation of a fifth of the mean: 75/255 ± 15/255 as published


def noisy(images: Tensor, keys: Sequence[int], seed: int, settings: ObjectiveSettings) -> Tensor:
    """x + σn, not clipped, float32 [N, 3, H, W]: image i depends on (seed, keys[i]) alone.

    images: [N, 3, H, W] in [0, 1]; keys: one an image, at least 0. settings: noise, noise_mean.
    """
    levels = upload(torch.tensor(noise_levels(keys, seed, settings), dtype=torch.float32), images.device)
    return images + levels[:, None, None, None] * keyed_normal(seed, keys, tuple(images.shape[1:]), images.device)


def noise_levels(keys: Sequence[int], seed: int, settings: ObjectiveSettings) -> list[float]:
    """The deviation σ of each image's noise, in units of the [0, 1] pixel range."""
    mean, rngs = settings.noise_mean, keyed_rngs("noise level", seed, [divmod(key, WORD) for key in keys])
    if settings.noise == "gamma":
        return [rng.gamma(GAMMA_SHAPE, mean / GAMMA_SHAPE) for rng in rngs]
    if settings.noise == "uniform":
        return [2 * mean * rng.random() for rng in rngs]
    return [mean] * len(keys)


def keyed_normal(seed: int, keys: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal numbers, float32 [N, *shape], by Box and Muller: row i depends on (seed, keys[i]) alone."""
    uniform = keyed_uniform("noise", seed, keys, (2, *shape), device)
    radius = ((1 - uniform[:, 0]) / 2).log().mul(-2).sqrt()  # of (0, 1], whose logarithm is finite
    return radius * (math.pi * uniform[:, 1]).cos()
