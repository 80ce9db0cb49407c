"""The energy of images of Hill, Mitchell and Zhu (ICLR 2021), and the Langevin steps that draw images of low energy.

The names of the tensors are those of the published files.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.05  # of the leaky rectifiers below zero
SIDE, HALVINGS = 32, 8  # what the last convolution makes one number of, and the size that the others halve thrice
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"leaky_relu": lambda: nn.LeakyReLU(SLOPE), "silu": nn.SiLU}


def padded_side(side: int) -> int:
    """The least side of an image from `side` pixels on that the network sees as it is."""
    least = max(side, SIDE)
    return least + -least % HALVINGS


class EnergyNetwork(nn.Module):
    """u [N, 3, H, W], about [-1, 1] → U(u), [N]: the energy times noise²/2, a sum over all places of a large image.

    width: channels of the first layer, doubled by each of the three after it; activation: one of ACTIVATIONS. noise,
    chain_steps, data_noise, chain_start: of its training, see `maep.objectives.energy` and `maep.training.chains`. The
    published one is 32 wide: 0.69 million parameters. Images that are smaller than 32 x 32, or do not halve thrice, are
    padded by their borders.
    """

    factor = 1  # images of any size

    def __init__(
        self,
        width: int,
        activation: str,
        noise: float,
        chain_steps: int,
        data_noise: float,
        chain_start: str = "uniform",
    ) -> None:
        super().__init__()
        self.chain_start = chain_start
        self.noise, self.chain_steps, self.data_noise = noise, chain_steps, data_noise
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), ACTIVATIONS[activation]()]
        for channels in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), ACTIVATIONS[activation]()]
        self.f = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, SIDE // HALVINGS))

    def forward(self, u: Tensor) -> Tensor:
        """u: [N, 3, H, W]. Returns [N]."""
        down, across = (padded_side(side) - side for side in u.shape[2:])
        return cast(Tensor, self.f(F.pad(u, (0, across, 0, down), mode="replicate"))).flatten(1).sum(1)


def langevin_step(gradient: Tensor, u: Tensor, noise: float, drawn: Tensor) -> Tensor:
    """u - ∇U(u) + noise·drawn, not clipped; all but noise [N, 3, H, W]. The step's size is within U."""
    return u - gradient + noise * drawn


def chains_after(network: EnergyNetwork, u: Tensor, steps: int, draw: Callable[[int], Tensor]) -> Tensor:
    """States [N, 3, H, W] after so many Langevin steps, without a graph. draw: number of a step → its noise."""
    u = u.detach()
    for number in range(steps):
        with torch.enable_grad():
            at = u.requires_grad_()
            (gradient,) = torch.autograd.grad(network(at).sum(), at)
        u = langevin_step(gradient, u.detach(), network.noise, draw(number))
    return u
