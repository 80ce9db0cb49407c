"""Noise that is a pure function of its key, drawn on whatever device it is for.

A generator of NumPy's for each image (`maep.runtime.randomness`) would hold up a GPU.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maep.runtime.device import upload
from maep.runtime.randomness import keyed_rng

GOLDEN, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # SplitMix64's, as int64
BITS = 24  # of a number that `uniform_of` and `normal_of` draw: the mantissa of fp32


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Logical shift to the right of int64, whose own keeps the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mixed(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of the result depends on every bit."""
    bits = (bits ^ _shifted(bits, 30)) * FIRST
    bits = (bits ^ _shifted(bits, 27)) * SECOND
    return bits ^ _shifted(bits, 31)


def sample_seeds(purpose: str, seed: int, keys: Sequence[int], device: torch.device) -> Tensor:
    """A seed of each sample, int64 [N]: entry i depends on (purpose, seed, keys[i]) alone."""
    stream = int(keyed_rng(purpose, seed).integers(-(2**63), 2**63))
    return upload(_mixed(torch.tensor(keys, dtype=torch.int64) ^ stream), device)


def _words(seeds: Tensor, count: int) -> Tensor:
    """Random bits, int64 [N, count]."""
    places = torch.arange(1, count + 1, dtype=torch.int64, device=seeds.device) * GOLDEN
    return _mixed(seeds[:, None] + places)


def _keyed_bits(purpose: str, seed: int, keys: Sequence[int], count: int, device: torch.device) -> Tensor:
    """64 random bits, int64 [N, count]: row i depends on (purpose, seed, keys[i]) alone. The same on every device."""
    return _words(sample_seeds(purpose, seed, keys, device), count)


def keyed_integers(
    purpose: str, seed: int, keys: Sequence[int], shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Uniform whole numbers of [0, 2⁶³), int64 [N, *shape]: row i depends on (purpose, seed, keys[i]) alone.

    The same on every device.
    """
    bits = _keyed_bits(purpose, seed, keys, torch.Size(shape).numel(), device)
    return _shifted(bits, 1).reshape(len(keys), *shape)


def keyed_uniform(purpose: str, seed: int, keys: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform numbers of [-1, 1), float32 [N, *shape]: row i depends on (purpose, seed, keys[i]) alone.

    The same bits on every device.
    """
    bits = _keyed_bits(purpose, seed, keys, torch.Size(shape).numel(), device)
    return (_shifted(bits, 40).to(torch.float32) * 2**-23 - 1).reshape(len(keys), *shape)


def keyed_gaussian(
    purpose: str, seed: int, keys: Sequence[int], shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Standard normal numbers, float32 [N, *shape]: row i depends on (purpose, seed, keys[i]) alone (Box and Muller).

    Of 53 bits each and computed in float64, so that tails end beyond 8 deviations, as a bound that rests on the
    distribution needs (24 bits end at 5.8). The same numbers on every device
    up to what its logarithm and sine round.
    """
    count = torch.Size(shape).numel()
    half = (count + 1) // 2
    uniform = (_shifted(_keyed_bits(purpose, seed, keys, 2 * half, device), 11).to(torch.float64) + 0.5) * 2**-53
    radius, angle = (-2 * uniform[:, :half].log()).sqrt(), 2 * math.pi * uniform[:, half:]
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]
    return normal.to(torch.float32).reshape(len(keys), *shape)


def _of_stream(seeds: Tensor, stream: int) -> Tensor:
    """Other seeds, for one of the streams that each sample has; stream: at least 0."""
    return _mixed(seeds ^ _mixed(torch.full_like(seeds, stream)))


def uniform_of(seeds: Tensor, stream: int) -> Tensor:
    """A uniform number of [0, 1) for each seed, float32 [N]; entry i depends on (seeds[i], stream) alone."""
    return _shifted(_words(_of_stream(seeds, stream), 1)[:, 0], 64 - BITS).to(torch.float32) * 2.0**-BITS


def normal_of(seeds: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float32 [N, *shape]; row i depends on (seeds[i], stream) alone.

    By Box and Muller's transform, a word of bits for each pair; none is above 5.8 in size.
    """
    count = math.prod(shape)
    bits = _words(_of_stream(seeds, stream), (count + 1) // 2)
    # Of (0, 1], so that its logarithm is finite.
    first = (_shifted(bits, 64 - BITS) + 1).to(torch.float32) * 2.0**-BITS
    angle = (bits & ((1 << BITS) - 1)).to(torch.float32) * (2 * math.pi * 2.0**-BITS)
    radius = (-2 * first.log()).sqrt()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count].reshape(len(seeds), *shape)
