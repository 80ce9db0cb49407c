"""Noise by the seeds of samples: normal, the same in any batch, nothing in common between samples and streams."""

import torch

from maep.runtime.keyed_noise import normal_of, sample_seeds, uniform_of

SHAPE = (3, 41, 41)  # an odd number of values: the last pair gives one


def test_is_normal() -> None:
    """Moments, quantiles, and no correlation between the two halves that share their radii."""
    noise = normal_of(torch.arange(20), 3, SHAPE)
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.var()) - 1) < 0.01
    assert abs(float(noise.pow(4).mean()) - 3) < 0.1
    for bound, share in ((0.6745, 0.5), (1.96, 0.95)):
        assert abs(float((noise.abs() < bound).float().mean()) - share) < 0.01
    halves = noise.flatten(1)[:, :-1].reshape(20, 2, -1).transpose(0, 1).flatten(1)
    assert abs(float(torch.corrcoef(halves)[0, 1])) < 0.02


def test_each_row_is_its_own_keys() -> None:
    """The same bits alone and in a batch; other samples, streams, purposes and seeds have nothing in common."""
    device = torch.device("cpu")
    seeds = sample_seeds("a", 0, [7, 8], device)
    both = normal_of(seeds, 1, SHAPE)
    assert torch.equal(normal_of(seeds[1:], 1, SHAPE), both[1:])
    assert torch.equal(uniform_of(seeds, 0)[1:], uniform_of(seeds[1:], 0))
    others = [sample_seeds(*key, [7], device) for key in (("b", 0), ("a", 1))]
    rows = [*both, normal_of(seeds, 2, SHAPE)[0], *(normal_of(each, 1, SHAPE)[0] for each in others)]
    correlations = torch.corrcoef(torch.stack(rows).flatten(1)) - torch.eye(len(rows))
    assert correlations.abs().max() < 0.07


def test_uniform_numbers_fill_their_range() -> None:
    """[0, 1), evenly, also of neighbouring seeds."""
    numbers = uniform_of(torch.arange(50_000), 1)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert (torch.histc(numbers, 20, 0, 1) / 50_000 - 0.05).abs().max() < 0.005
