"""Gaussian noise as whole levels of 1/255, by integer arithmetic alone (Voráček and Hein, ICLR 2023).

A sum of an image and of noise in floating point is not normally distributed, and a classifier can tell where it came
from: so certificates that rest on such sums are wrong in corner cases. Here the noise of a pixel is a whole number k of
levels with the probability

    P(k) = Φ((k + ½) / s) - Φ((k - ½) / s),   s = 255·σ,

which is how a normal number of deviation s rounds. An image of 8 bits plus such noise is therefore exactly what the
image plus normal noise rounds to, and Cohen's certificate is exact for the classifier of rounded images. A number k is
drawn by comparing 63 random bits with a table of 2⁶³·Φ, each entry rounded from 40 decimal digits; how far the drawn
distribution is from P is bounded (`error`) and taken off what was counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache

import torch
from torch import Tensor

from maep.runtime.keyed_noise import keyed_integers

BITS = 63
DIGITS = 40  # of the table's arithmetic: 2⁶³ has 19, and a sum of some hundred terms loses three
REACH = Decimal("9.5")  # deviations that the table is looked for: beyond lies less than 2⁻⁶⁹ of the probability
LEVELS = 255
PI = Decimal("3.14159265358979323846264338327950288419716939937510")


def normal_cdf(x: Decimal) -> Decimal:
    """Φ(x) for x up to 10 in size, to `DIGITS` - 5 decimal places: ½ + φ(x)·(x + x³/3 + x⁵/15 + …), all of one sign."""
    with localcontext() as context:
        context.prec = DIGITS
        term, total, odd = x, x, 1
        smallest = Decimal(10) ** -DIGITS
        while abs(term) > smallest:
            odd += 2
            term = term * x * x / odd
            total += term
        return Decimal("0.5") + (-x * x / 2).exp() / (2 * PI).sqrt() * total


@dataclass(frozen=True)
class LevelNoise:
    """Noise of one deviation. thresholds: int64, ascending: k is so many of them that are at most the random bits, plus
    `lowest`. error: total variation, at most, between what is drawn of one pixel and P.
    """

    thresholds: Tensor
    lowest: int
    error: float

    def draw(
        self, purpose: str, seed: int, keys: Sequence[int], shape: tuple[int, ...], device: torch.device
    ) -> Tensor:
        """Whole levels, int64 [N, *shape]: row i depends on (purpose, seed, keys[i]) alone, on every device."""
        bits = keyed_integers(purpose, seed, keys, shape, device)
        return self.lowest + torch.searchsorted(self.thresholds.to(device), bits, right=True)


@cache
def level_noise(sigma: float) -> LevelNoise:
    """Of a deviation in [0,1] pixels. A table of 19·255·σ entries, made once: half a second at σ = 1."""
    deviation = Decimal(repr(sigma)) * LEVELS
    lower = list(_lower_thresholds(deviation))
    upper = [2**BITS - threshold for threshold in reversed(lower)]
    # Each entry is wrong by half a unit of 2⁻⁶³ at most, so the probability of each k by one; half of the sum over all
    # k is the total variation. As much again covers what lies beyond the table, and more.
    error = (len(lower) + 1) * 2.0 ** (1 - BITS)
    return LevelNoise(torch.tensor(lower + upper, dtype=torch.int64), -len(lower), error)


def _lower_thresholds(deviation: Decimal) -> Iterator[int]:
    """2⁶³·Φ((k + ½)/s) for k up to -1, from the lowest level that ever comes on."""
    for level in range(int(REACH * deviation), 0, -1):
        threshold = round(normal_cdf((Decimal("0.5") - level) / deviation) * 2**BITS)
        if threshold:
            yield threshold
