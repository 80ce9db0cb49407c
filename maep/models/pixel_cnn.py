"""A small PixelCNN++ (Salimans et al., ICLR 2017): the likelihood of an image, pixel after pixel, and greedy choices.

Two stacks of gated layers, neither of which sees a pixel before it is its turn:

    vertical      ┌───────────┐           horizontal    rows above, through the vertical stack of its own row,
                  │ rows above│                          and pixels to the left
                  └───────────┘ ▫ (its pixel is below)

A pixel's three channels follow a mixture of discretised logistic distributions over 256 levels, whose green mean
depends on red, and whose blue mean on both. What is smaller here than in the original: one convolution a layer, and no
levels of other resolutions.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 255
HALF = 1 / LEVELS  # of a level's width, in units of [-1, 1]
SHARPEST = -7.0  # logarithm of the least scale, an eighth of a level, as in the original
NUMBERS = 10  # of a component: its weight; three means, three deviations, three coefficients between channels


def gated(features: Tensor, dim: int = 1) -> Tensor:
    """The first half of the channels, each by the sigmoid of its other one."""
    content, gate = features.chunk(2, dim)
    return content * gate.sigmoid()


class CausalLayer(nn.Module):
    """One layer of both stacks, residual."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(features, 2 * features, (2, 3))  # its own row and the one above
        self.right = nn.Conv2d(features, 2 * features, (2, 2))  # its pixel, left, above, above left
        self.across = nn.Conv2d(features, 2 * features, 1)

    def forward(self, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
        """Both: [N, features, H, W]. Returns the same shapes."""
        vertical = vertical + gated(self.down(F.pad(F.elu(vertical), (1, 1, 1, 0))))
        seen = self.right(F.pad(F.elu(horizontal), (1, 0, 1, 0))) + self.across(F.elu(vertical))
        return vertical, horizontal + gated(seen)


class PixelCnn(nn.Module):
    """features: channels of both stacks; layers: of each; components: logistic distributions of the mixture."""

    def __init__(self, features: int, layers: int, components: int) -> None:
        super().__init__()
        self.components = components
        self.above = nn.Conv2d(4, features, (2, 3))  # of the two rows above
        self.left = nn.Conv2d(4, features, (2, 1))  # of the pixels left and above left
        self.layers = nn.ModuleList([CausalLayer(features) for _ in range(layers)])
        self.head = nn.Conv2d(features, NUMBERS * components, 1)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """The mixtures of all pixels, [N, 10·components, H, W], each from the pixels before it.

        images: [N, 3, H, W] in [0, 1]; visible: None. Raises ValueError for a mask.
        """
        if visible is not None:
            raise ValueError("this network sees whole images; give visible=None")
        pixels = with_ones(2 * images - 1)
        vertical = self.above(F.pad(pixels, (1, 1, 2, 0))[:, :, :-1])
        horizontal = self.left(F.pad(pixels, (1, 0, 1, 0))[:, :, :, :-1])
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal)
        return cast(Tensor, self.head(F.elu(horizontal)))


def with_ones(pixels: Tensor) -> Tensor:
    """[N, 3, …] with a fourth channel of ones, so that black is told from what lies outside of the image."""
    return torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)


class Mixture:
    """The distributions of pixels. numbers: [N, 10·components, …], as `PixelCnn` predicts them."""

    def __init__(self, numbers: Tensor) -> None:
        parts = numbers.unflatten(1, (NUMBERS, -1))
        self.weights = parts[:, 0].log_softmax(1)  # [N, components, …], as all below
        self.means, self.scales = parts[:, 1:4], parts[:, 4:7].clamp(min=SHARPEST)
        self.coefficients = parts[:, 7:10].tanh()

    def mean(self, channel: int, before: Tensor) -> Tensor:
        """Means of a channel. before: [N, 3, …], the pixel in [-1, 1], of which the channels before this one count."""
        mean, red, green = self.means[:, channel], before[:, :1], before[:, 1:2]
        if channel == 0:
            return mean
        if channel == 1:
            return mean + self.coefficients[:, 0] * red
        return mean + self.coefficients[:, 1] * red + self.coefficients[:, 2] * green


def log_logistic(values: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    """Logarithm of the probability of a level under a logistic distribution that is cut into levels.

    The outermost levels have the tails. values: of levels, in [-1, 1]; means; scales: their logarithms.

    σ(a) - σ(b) = σ(a)·σ(-b)·(1 - e^(b-a)), whose logarithm needs no bound against rounding, however far the tail.
    """
    sharpness = (-scales).exp()
    upper, lower = (values - means + HALF) * sharpness, (values - means - HALF) * sharpness
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
    inside = below + above + log_width(sharpness)
    return torch.where(values < HALF - 1, below, torch.where(values > 1 - HALF, above, inside))


def log_width(sharpness: Tensor) -> Tensor:
    """log(1 - e^(b-a)), a and b being a level's width apart; sharpness: 1 over the scale."""
    return (-torch.expm1(-2 * HALF * sharpness)).log()


def log_likelihood(numbers: Tensor, images: Tensor) -> Tensor:
    """Logarithm of the probability of each pixel, [N, H, W]. images: [N, 3, H, W] in [0, 1], of 8 bits."""
    mixture, pixels = Mixture(numbers), 2 * images - 1
    total = mixture.weights
    for channel in range(3):
        values = pixels[:, channel : channel + 1]
        total = total + log_logistic(values, mixture.mean(channel, pixels), mixture.scales[:, channel])
    return total.logsumexp(1)
