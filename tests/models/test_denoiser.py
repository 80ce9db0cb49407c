"""The denoiser: its size and cost, what it answers to the time, how many layouts there are."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maep.models.denoiser import Denoiser


@pytest.mark.parametrize(
    ("width", "unshuffle", "millions", "giga"), [(32, 1, 1.06, 0.49), (24, 1, 0.60, 0.28), (48, 2, 2.4, 0.28)]
)
def test_has_the_parameters_and_the_cost_that_were_counted(
    width: int, unshuffle: int, millions: float, giga: float
) -> None:
    """Against sums over the layers of such networks, made by hand (multipliers 1, 2, 2, one block a level)."""
    with torch.device("meta"):
        network = Denoiser(width, [1, 2, 2], 1, unshuffle, 0.2)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 32, 32), torch.empty(1))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert counter.get_total_flops() / 1e9 == pytest.approx(giga, rel=0.02)


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
def test_predicts_nothing_at_first_and_then_hears_the_time(unshuffle: int) -> None:
    """Zeros before any training; once its last layer is there, another time is another answer, image by image."""
    torch.manual_seed(0)
    network = Denoiser(8, [1, 2], 1, unshuffle, 0.2)
    u, times = torch.randn(2, 3, 16, 24), torch.tensor([0.01, 0.2])
    assert not network(u, times).any()
    nn.init.normal_(network.tail.weight, std=0.1)
    both = network(u, times)
    assert both.shape == u.shape
    torch.testing.assert_close(network(u[1:], times[1:]), both[1:])
    assert (network(u, times.flip(0)) - both).abs().amax((1, 2, 3)).gt(1e-4).all()


def test_has_two_derivatives() -> None:
    """A purifier that follows a gradient of the network is attacked through the gradient's own."""
    torch.manual_seed(0)
    network = Denoiser(8, [1, 2], 1, 1, 0.2).double()
    nn.init.normal_(network.tail.weight, std=0.1)
    times = torch.tensor([0.1], dtype=torch.float64)
    u = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda each: network(each, times).square().sum(), u, fast_mode=True)
