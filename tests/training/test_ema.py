"""The averaged weights against the closed form of their sum."""

import math

import pytest
import torch
from torch import nn

from maep.training.ema import Average


def averaged(decay: float, steps: int) -> float:
    """The average after so many steps of a weight that is 0 at first and 1 from then on."""
    weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
    average = Average({"weight": weight}, decay)
    with torch.no_grad():
        weight.fill_(1.0)
    for step in range(steps):
        average.update(step)
    return float(average.parts["weight"])


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_the_decay_warms_up(steps: int) -> None:
    """While it is below the setting it is (1 + t) / (10 + t): of n steps n!·9!/(n + 9)! of the first weight is left."""
    left = math.factorial(steps) * math.factorial(9) / math.factorial(steps + 9)
    assert 1 - averaged(0.999, steps) == pytest.approx(left, rel=1e-9)


def test_then_it_is_the_setting() -> None:
    """Of 0.5, from the ninth step on, so that each halves what is left; of 0 the average is the weight."""
    before, after = (1 - averaged(0.5, steps) for steps in (8, 14))
    assert after == pytest.approx(before / 2**6, rel=1e-9)
    assert averaged(0.0, 3) == 1.0


def test_what_is_taken_in_with_a_decay_of_its_own() -> None:
    """So much of the average is kept, and the rest is the weight; with 0 it is the weight's copy, and stays it."""
    weight = nn.Parameter(torch.tensor([1.0, -3.0], dtype=torch.float64))
    average = Average({"weight": weight}, 0.5)
    with torch.no_grad():
        weight.fill_(5.0)
    average.take(0.75)
    torch.testing.assert_close(average.parts["weight"], torch.tensor([2.0, -1.0], dtype=torch.float64))
    average.take(0.0)
    with torch.no_grad():
        weight.fill_(7.0)
    assert average.parts["weight"].tolist() == [5.0, 5.0]
