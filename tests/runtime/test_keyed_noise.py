"""Keyed noise: a function of its key alone, and of the distribution that it says."""

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from maep.runtime.keyed_noise import keyed_gaussian, keyed_uniform

DEVICE = torch.device("cpu")


@pytest.mark.parametrize("draw", [keyed_uniform, keyed_gaussian])
def test_noise_is_a_function_of_its_key_alone(draw: Callable[..., Tensor]) -> None:
    """Rows of a batch equal the same keys alone; purposes, seeds and neighbouring keys have nothing in common."""
    noise = draw("whole", 3, [5, 6, 7], (3, 40, 40), DEVICE)
    assert torch.equal(noise[1:2], draw("whole", 3, [6], (3, 40, 40), DEVICE))
    others = [("other", 3, 6), ("whole", 4, 6), ("whole", 3, 7)]
    rows = [noise[1], *(draw(purpose, seed, [key], (3, 40, 40), DEVICE)[0] for purpose, seed, key in others)]
    correlations = torch.corrcoef(torch.stack(rows).flatten(1)) - torch.eye(4)
    assert correlations.abs().max() < 0.06


def test_uniform_noise_is_uniform() -> None:
    """It fills [-1, 1) evenly."""
    noise = keyed_uniform("whole", 3, [5, 6, 7], (3, 40, 40), DEVICE)
    assert noise.min() >= -1
    assert noise.max() < 1
    histogram = torch.histc(noise, 10, -1, 1) / noise.numel()
    assert (histogram - 0.1).abs().max() < 0.01


@pytest.mark.parametrize("shape", [(3, 40, 40), (7,)])
def test_normal_noise_is_normal(shape: tuple[int, ...]) -> None:
    """By Kolmogorov and Smirnov, tails included; an odd number of numbers too; the pairs of a draw do not correlate."""
    noise = keyed_gaussian("whole", 3, range(6000 // shape[0] // len(shape)), shape, DEVICE)
    assert noise.shape[1:] == shape
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    assert abs(float((noise.flatten().abs() > 3).float().mean()) - 2 * stats.norm.sf(3)) < 0.001
    rows = noise.flatten(1).T
    assert torch.corrcoef(rows[: min(len(rows), 50)]).fill_diagonal_(0).abs().max() < 0.15
