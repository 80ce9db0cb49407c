"""Cutting images of any size into square tiles, and joining them again."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def tile_count(length: int, size: int, overlap: int) -> int:
    """Tiles of side `size` along an axis of `length` pixels, neighbours sharing `overlap` of them."""
    return 1 + max(0, math.ceil((length - size) / (size - overlap)))


def reflected(length: int, padded: int, before: int = 0) -> Tensor:
    """Indices [padded] that continue an axis of `length` pixels by mirroring at its ends, again and again.

    before: how many of them lie before the axis begins.
    """
    period = max(1, 2 * (length - 1))
    phase = (torch.arange(padded) - before) % period
    return torch.minimum(phase, period - phase).clamp(max=length - 1)


def blend_weights(count: int, size: int, overlap: int) -> Tensor:
    """Weights [count, size] of each tile's pixels along an axis; they add up to 1 at every pixel.

    Without overlap all are 1; with it they rise and fall as sine squares over the shared pixels.
    """
    ramp = torch.ones(size)
    if overlap:
        rise = torch.sin((torch.arange(overlap) + 0.5) * math.pi / (2 * overlap)).square()
        ramp[:overlap] *= rise
        ramp[size - overlap :] *= rise.flip(0)
    starts = torch.arange(count)[:, None] * (size - overlap) + torch.arange(size)
    length = (count - 1) * (size - overlap) + size  # a number, not read from a tensor: torch.export follows it
    total = torch.zeros(length).index_add(0, starts.flatten(), ramp.repeat(count))
    return ramp / total[starts]


class Tiling:
    """A grid of tiles over images of one size.

    height, width: of the images; size: side of a tile; overlap: pixels that neighbours share, below `size`;
    shift: pixels, below size - overlap, by which the first tiles begin above and left of the image.
    Images are continued by reflection on all sides to whole tiles.
    """

    def __init__(self, height: int, width: int, size: int, overlap: int, shift: int = 0) -> None:
        self.height, self.width, self.size, self.stride, self.shift = height, width, size, size - overlap, shift
        self.rows, self.columns = (tile_count(shift + length, size, overlap) for length in (height, width))
        self.padded = tuple(size + (count - 1) * self.stride for count in (self.rows, self.columns))
        vertical, horizontal = (blend_weights(count, size, overlap) for count in (self.rows, self.columns))
        self.weights = vertical[:, None, :, None] * horizontal[None, :, None, :]
        self.from_rows = reflected(height, self.padded[0], shift)
        self.from_columns = reflected(width, self.padded[1], shift)

    def to(self, images: Tensor) -> "Tiling":
        """This grid, its tensors moved to where `images` are and its weights to their type."""
        self.weights = self.weights.to(images.device, images.dtype)
        self.from_rows, self.from_columns = self.from_rows.to(images.device), self.from_columns.to(images.device)
        return self

    def cut(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N * rows * columns, C, size, size], an image's tiles together, row by row."""
        images = images.index_select(2, self.from_rows.to(images.device))
        images = images.index_select(3, self.from_columns.to(images.device))
        tiles = images.unfold(2, self.size, self.stride).unfold(3, self.size, self.stride)
        return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1], self.size, self.size)

    def join(self, tiles: Tensor) -> Tensor:
        """The inverse of `cut`; where tiles overlap, their weighted mean."""
        channels, area = tiles.shape[1], self.size**2
        grid = tiles.reshape(-1, self.rows, self.columns, channels, self.size, self.size)
        weights = self.weights.to(tiles.device, tiles.dtype)[:, :, None]
        columns = (grid * weights).reshape(-1, self.rows * self.columns, channels * area).transpose(1, 2)
        joined = F.fold(columns, self.padded, self.size, stride=self.stride)
        return joined[:, :, self.shift :, self.shift :][:, :, : self.height, : self.width]

    def borders(self) -> tuple[Tensor, Tensor]:
        """Where tiles begin or end inside the image: bool [height - 1] and [width - 1], True between i and i + 1."""
        return self._borders(self.height, self.rows), self._borders(self.width, self.columns)

    def _borders(self, length: int, count: int) -> Tensor:
        starts = torch.arange(count) * self.stride - self.shift
        ends = torch.cat([starts, starts + self.size]) - 1
        borders = torch.zeros(length - 1, dtype=torch.bool)
        borders[ends[(ends >= 0) & (ends < length - 1)]] = True
        return borders


def seam_error(field: Tensor, borders: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean absolute step between neighbouring pixels: across the borders of tiles, and everywhere else.

    field: [N, C, H, W], what a purifier added to its input, so that the image's own edges do not count;
    borders: bool [H - 1] and [W - 1], as `Tiling.borders` gives. Returns two float [N] in units of the field, NaN
    where there is no such step. Without seams the two are about equal.
    """
    rows, columns = borders
    down, right = (field.diff(dim=axis).abs().mean(1) for axis in (2, 3))
    across = torch.cat([down[:, rows].flatten(1), right[:, :, columns].flatten(1)], dim=1)
    inside = torch.cat([down[:, ~rows].flatten(1), right[:, :, ~columns].flatten(1)], dim=1)
    return across.mean(1), inside.mean(1)
