"""Greedy pixels of a PixelCNN: one after another, each the most likely one given those that were chosen before it.

What a layer said of earlier pixels is kept, so all pixels together cost one forward pass, in many small steps. Without
a gradient, in float64: the choice between two levels that are nearly as likely does not depend on the batch.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from maep.models.pixel_cnn import LEVELS, CausalLayer, Mixture, PixelCnn, gated, log_width, with_ones


def greedy_pixels(model: PixelCnn, images: Tensor, reach: int) -> Tensor:
    """Every channel of every pixel in turn the likeliest level that is at most `reach` from its own.

    images: [N, 3, H, W] in [0, 1], which are rounded to 8 bits. Returns levels / 255, of the same shape and dtype.
    """
    with torch.inference_mode():  # a fifth faster, where every step is as short as its overhead
        chosen = _chosen(model, (images.double() * LEVELS).round(), reach)
    return (chosen / LEVELS).to(images.dtype)


def _chosen(model: PixelCnn, levels: Tensor, reach: int) -> Tensor:
    chosen = torch.empty_like(levels)
    rows = Rows(deepcopy(model).double(), levels)
    for row in range(levels.shape[2]):
        rows.begin()
        for column in range(levels.shape[3]):
            pixel = likeliest(Mixture(rows.numbers(column)), levels[:, :, row, column], reach)
            chosen[:, :, row, column] = pixel
            rows.put(column, 2 * pixel / LEVELS - 1)
    return chosen


def likeliest(mixture: Mixture, levels: Tensor, reach: int) -> Tensor:
    """Red, then green given it, then blue given both. levels: [N, 3]. Returns the same shape."""
    # What does not depend on other channels, for all three at once. Neighbouring levels share the edge between them.
    steps = torch.arange(-reach, reach + 2, device=levels.device, dtype=levels.dtype)
    edges = (2 * (levels[:, :, None] + steps) - 1) / LEVELS - 1  # [N, 3, candidates + 1]
    candidates = levels[:, :, None] + steps[:-1]
    first, last = candidates <= 0, candidates >= LEVELS
    barred = torch.zeros_like(candidates).masked_fill((candidates < 0) | (candidates > LEVELS), -torch.inf)
    sharpness = (-mixture.scales).exp()[:, :, :, None]
    widths = log_width(sharpness)
    pixel, weights = torch.zeros_like(levels), mixture.weights[:, :, None]
    for channel in range(3):
        mean = mixture.mean(channel, 2 * pixel / LEVELS - 1)[:, :, None]
        position = (edges[:, channel, None] - mean) * sharpness[:, channel]
        below = F.logsigmoid(position)
        above = below - position  # on the other side of an edge
        below, above = below[:, :, 1:], above[:, :, :-1]
        said = torch.where(first[:, channel, None], below, below + above + widths[:, channel])
        said = weights + torch.where(last[:, channel, None], above, said)  # [N, components, candidates]
        best = (said.logsumexp(1) + barred[:, channel]).argmax(1)[:, None]
        pixel[:, channel] = candidates[:, channel].gather(1, best)[:, 0]
        weights = said.gather(2, best[:, None].expand(-1, said.shape[1], -1))
    return pixel


class Rows:
    """The layers of a PixelCNN on one row of images after another, pixel by pixel.

    Of the rows above it keeps the pixels of two, and of one what each layer was given, after its ELU.
    """

    def __init__(self, model: PixelCnn, images: Tensor) -> None:
        """images: [N, 3, H, W], of which shape, dtype and device count."""
        count, _, _, width = images.shape
        row = images.new_zeros(count, model.head.in_channels, width)
        self.model, self.layers = model, cast(Sequence[CausalLayer], model.layers)
        self.pixels = [images.new_zeros(count, 4, width) for _ in range(2)]  # of the row above, and of this row
        self.vertical = [torch.zeros_like(row) for _ in self.layers]
        self.horizontal = [torch.zeros_like(row) for _ in self.layers]
        self.bases: list[Tensor] = []
        # Of the pixel on the left and of the own one, in one matrix [2 · features, 2 · features].
        self.sideways = [torch.cat([*layer.right.weight[:, :, 1].unbind(2)], 1).T for layer in self.layers]

    def begin(self) -> None:
        """Take up the next row: all that does not depend on its pixels."""
        before, above = self.pixels
        self.pixels = [above, torch.zeros_like(above)]
        first, side = self.model.above, self.model.left
        start = F.conv1d(F.pad(above, (1, 0))[:, :, :-1], side.weight[:, :, 0], side.bias)
        self.start = start.permute(2, 0, 1)  # [W, N, features]
        vertical = F.conv2d(torch.stack([before, above], 2), first.weight, first.bias, padding=(0, 1))[:, :, 0]
        self.bases = []
        for number in range(len(self.layers)):
            vertical = self._down(number, vertical)
            self.bases.append(self._base(number, vertical))
        self.horizontal = [torch.zeros_like(given) for given in self.horizontal]

    def _down(self, number: int, vertical: Tensor) -> Tensor:
        """The vertical stack after a layer, [N, features, W]."""
        layer, active = self.layers[number].down, F.elu(vertical)
        both = torch.stack([self.vertical[number], active], 2)
        self.vertical[number] = active
        return vertical + gated(F.conv2d(both, layer.weight, layer.bias, padding=(0, 1))[:, :, 0])

    def _base(self, number: int, vertical: Tensor) -> Tensor:
        """What a layer of the horizontal stack gets from the row above, [W, N, 2 · features]."""
        right, across = self.layers[number].right, self.layers[number].across
        seen = F.conv1d(F.pad(self.horizontal[number], (1, 0)), right.weight[:, :, 0], right.bias)
        seen = seen + F.conv1d(F.elu(vertical), across.weight[:, :, 0], across.bias)
        return seen.permute(2, 0, 1).contiguous()

    def numbers(self, column: int) -> Tensor:
        """The mixture of a pixel of this row, [N, 10 · components], after `put` was called for all on its left."""
        features = self.start[column]
        if column:
            features = features + self.pixels[1][:, :, column - 1] @ self.model.left.weight[:, :, 1, 0].T
        for number, base in enumerate(self.bases):
            kept, active = self.horizontal[number], F.elu(features)
            left = kept[:, :, column - 1] if column else torch.zeros_like(active)
            features = features + gated(base[column] + torch.cat([left, active], 1) @ self.sideways[number])
            kept[:, :, column] = active
        return F.linear(F.elu(features), self.model.head.weight[:, :, 0, 0], self.model.head.bias)

    def put(self, column: int, pixel: Tensor) -> None:
        """A pixel of this row is known: [N, 3] in [-1, 1]."""
        self.pixels[1][:, :, column] = with_ones(pixel)
