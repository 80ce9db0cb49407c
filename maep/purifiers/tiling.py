"""Cutting images of any size into square tiles, and joining them again."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator

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


def reflected_around(images: Tensor, margin: int) -> Tensor:
    """images, [N, C, H, W], continued by `margin` pixels at each end of both axes, as `reflected`."""
    for axis in (2, 3):
        length = images.shape[axis]
        continued = reflected(length, length + 2 * margin, margin)
        images = images.index_select(axis, continued.to(images.device))
    return images


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
        self.vertical, self.horizontal = (blend_weights(count, size, overlap) for count in (self.rows, self.columns))
        self.weights: Tensor | None = None  # of all tiles, once they are asked for: of a large image they are large
        self.from_rows = reflected(height, self.padded[0], shift)
        self.from_columns = reflected(width, self.padded[1], shift)

    def to(self, images: Tensor) -> "Tiling":
        """This grid, its tensors moved to where `images` are and its weights, all of them now made, to their type."""
        self.weights = self._weights(0, self.rows).to(images.device, images.dtype)
        self.from_rows, self.from_columns = self.from_rows.to(images.device), self.from_columns.to(images.device)
        return self

    def _weights(self, first: int, count: int) -> Tensor:
        """[count, columns, size, size] of so many rows of tiles from the `first` on."""
        return self.vertical[first : first + count, None, :, None] * self.horizontal[None, :, None, :]

    def cut(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N * rows * columns, C, size, size], an image's tiles together, row by row."""
        return self._cut(images, self.from_rows)

    def cut_rows(self, read: Callable[[slice], Tensor]) -> Iterator[Tensor]:
        """What `cut` gives of one image, [columns, C, size, size] for each row of tiles.

        read: rows of the image → they, [1, C, height, W].
        """
        for row in range(self.rows):
            seen = self.from_rows[row * self.stride : row * self.stride + self.size]
            first = int(seen.min())
            yield self._cut(read(slice(first, int(seen.max()) + 1)), seen - first)

    def _cut(self, images: Tensor, from_rows: Tensor) -> Tensor:
        images = images.index_select(2, from_rows.to(images.device))
        images = images.index_select(3, self.from_columns.to(images.device))
        tiles = images.unfold(2, self.size, self.stride).unfold(3, self.size, self.stride)
        return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1], self.size, self.size)

    def join(self, tiles: Tensor) -> Tensor:
        """The inverse of `cut`; where tiles overlap, their weighted mean."""
        joined = self._joined(tiles, self._weights(0, self.rows) if self.weights is None else self.weights)
        return joined[:, :, self.shift :][:, :, : self.height]

    def join_rows(self, tile_rows: Iterable[Tensor]) -> Iterator[Tensor]:
        """What `join` gives of one image, [1, C, height, W] from its top to its end, to the bit.

        tile_rows: as `cut_rows` gives them. As many are held as lie over one pixel.
        """
        held: deque[Tensor] = deque(maxlen=math.ceil(self.size / self.stride))
        for row, tiles in enumerate(tile_rows):
            held.append(tiles)
            first = row + 1 - len(held)
            # All tiles over a pixel in one sum: its order is then the same as in `join`.
            joined = self._joined(torch.cat(list(held)), self._weights(first, len(held)))
            start, end = row * self.stride, self.padded[0] if row + 1 == self.rows else (row + 1) * self.stride
            start, end = max(start, self.shift), min(end, self.shift + self.height)
            if start < end:
                yield joined[:, :, start - first * self.stride : end - first * self.stride]

    def _joined(self, tiles: Tensor, weights: Tensor) -> Tensor:
        """Rows of tiles joined: as many as `weights` has; [N, C, height of all of them, W]."""
        channels, rows = tiles.shape[1], len(weights)
        grid = tiles.reshape(-1, rows, self.columns, channels, self.size, self.size)
        weighted = grid * weights.to(tiles.device, tiles.dtype)[:, :, None]
        columns = weighted.reshape(-1, rows * self.columns, channels * self.size**2).transpose(1, 2)
        padded = (self.size + (rows - 1) * self.stride, self.padded[1])
        joined = F.fold(columns, padded, self.size, stride=self.stride)
        return joined[:, :, :, self.shift :][:, :, :, : self.width]

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
