"""DISCO's network (Ho and Vasconcelos, NeurIPS 2022): a convolutional encoder and a local implicit module.

The encoder (EDSR's without upsampling, Lim et al. 2017) gives a feature a pixel; a perceptron sees the 3 x 3 features
around a queried point and says its clean colour (LIIF, Chen et al. 2021). The names of the tensors are those of the
published files.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 3  # features around the queried one, on a side
PLACE = 2  # inputs of the perceptron: where the point lies from the feature's pixel, then the size of a pixel
# Coordinates run from -1 to 1 and are counted in pixels: at the image's own resolution a pixel is 2 x 2, and the next
# pixel's centre lies 2 away.
PIXEL = 2.0


class ConvBlock(nn.Module):
    """x + conv(relu(conv(x))), as EDSR's block with its names."""

    def __init__(self, features: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(features, features, 3, padding=1) for _ in range(2)]
        self.body = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1])

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, features, H, W]. Returns the same shape."""
        return x + self.body(x)


class FeatureEncoder(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] to features [N, features, H, W]."""

    def __init__(self, blocks: int, features: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, features, 3, padding=1))
        self.body = nn.Sequential(
            *[ConvBlock(features) for _ in range(blocks)], nn.Conv2d(features, features, 3, padding=1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W]. Returns [N, features, H, W]."""
        x = self.head(images)
        return x + self.body(x)


class PointPerceptron(nn.Module):
    """The perceptron of a point: its window of features, its place in the pixel and the pixel's size to a colour.

    features: channels of a feature; hidden: widths of its hidden layers, at least one.
    """

    def __init__(self, features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.features = features
        widths = [features * WINDOW**2 + 2 * PLACE, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 3))

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: [..., features * 9 + 4], of one point each. Returns [..., 3]."""
        return self.layers(inputs)

    def first(self, features: Tensor) -> Tensor:
        """The first layer before its bias, at every pixel: [N, features, H, W] to [N, width, H, W]."""
        weight = self._weight[:, : self.features * WINDOW**2]
        return F.conv2d(features, weight.reshape(-1, self.features, WINDOW, WINDOW), padding=WINDOW // 2)

    def colours(self, first: Tensor, down: float = 0.0, across: float = 0.0) -> Tensor:
        """The rest, [N, width, H, W] to [N, 3, H, W], for points so far from the pixels' centres."""
        if 0 in first.shape:  # an image of one row or column has no border to share; torch convolves nothing empty
            return first.new_zeros(len(first), 3, *first.shape[2:])
        place = torch.tensor([down, across, PIXEL, PIXEL]).to(self._weight)
        linears: list[nn.Linear] = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        x = first + (self._weight[:, -2 * PLACE :] @ place + linears[0].bias)[:, None, None]
        for layer in linears[1:]:
            x = F.conv2d(F.relu(x), layer.weight[:, :, None, None], layer.bias)
        return x

    @property
    def _weight(self) -> Tensor:
        """Of the first layer, [width, features * 9 + 4]."""
        weight: Tensor = self.layers[0].weight  # type: ignore[assignment]
        return weight


class LocalImplicitNetwork(nn.Module):
    """DISCO at the image's own resolution: [N, 3, H, W] in [0, 1] to the same shape, not clipped; H and W any.

    The published module asks the perceptron four times a pixel, from the features around the point, and weighs the
    answers by the opposite areas. On the image's own grid the pixel's own feature has all the weight but 1e-9; in the
    last row it shares it with the next pixel's, in the last column with the pixel's below. So it is asked once, and
    twice at these two borders, with the same result (tests/models/test_local_implicit.py has the four).
    """

    def __init__(self, blocks: int = 16, features: int = 64, hidden: Sequence[int] = (256,) * 4) -> None:
        super().__init__()
        self.encoder = FeatureEncoder(blocks, features)
        self.imnet = PointPerceptron(features, hidden)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """images: [N, 3, H, W] in [0, 1]; visible: None, since it sees whole images. Returns the same shape.

        Raises ValueError for a mask.
        """
        if visible is not None:
            raise ValueError("this network sees whole images; give visible=None")
        first = self.imnet.first(self.encoder(2 * images - 1))
        own = self.imnet.colours(first)
        below = self.imnet.colours(first[:, :, 1:, -1:], down=-PIXEL)
        beside = self.imnet.colours(first[:, :, -1:, 1:], across=-PIXEL)
        last_row = (own[:, :, -1:, :-1] + beside) / 2
        last_column = torch.cat([(own[:, :, :-1, -1:] + below) / 2, own[:, :, -1:, -1:]], 2)
        colours = torch.cat([torch.cat([own[:, :, :-1, :-1], last_row], 2), last_column], 3)
        return (colours + 1) / 2
