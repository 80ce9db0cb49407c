"""What is in memory in floating point at a time: one large image by parts and how they are regrouped, and its type."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Side of the blocks of an image that a kind purifies by blocks: small enough that a median over windows of 15 x 15, the
# worst, takes 0.4 GB; large beside what kinds see around a block. A multiple of JPEG's units of 16 pixels.
BLOCK = 128

# read(rows, columns): that region of an image, [1, 3, height, width] in [0, 1], on the purifier's device.
Read = Callable[[slice, slice], Tensor]
Purify = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """A purified region of an image. top, left: where it lies; images: [1, 3, height, width] in [0, 1]."""

    top: int
    left: int
    images: Tensor


def in_fp32(images: Tensor) -> Tensor:
    """Images of 16 bits in fp32, others as they are: for kinds whose steps cannot be told apart in 16 bits."""
    return images.to(torch.promote_types(images.dtype, torch.float32))


def block_side(reach: int) -> int:
    """Side of a block with all that it depends on. reach: pixels around it."""
    return BLOCK + 2 * reach


def by_blocks(purify: Purify, read: Read, size: tuple[int, int], reach: int) -> Iterator[Part]:
    """All blocks of an image, row by row, each purified with what lies around it.

    size: height and width; reach: pixels around a pixel on which what becomes of it depends.
    """
    for top in range(0, size[0], BLOCK):
        for left in range(0, size[1], BLOCK):
            around = [
                slice(max(0, first - reach), min(length, first + BLOCK + reach))
                for first, length in zip((top, left), size, strict=True)
            ]
            purified = purify(read(*around))
            down, right = top - around[0].start, left - around[1].start
            yield Part(top, left, purified[:, :, down : down + BLOCK, right : right + BLOCK])


def regrouped(chunks: Iterable[Tensor], count: int, axis: int = 0) -> Iterator[Tensor]:
    """The same entries along an axis in chunks of `count`, the last one of what is left."""
    waiting: list[Tensor] = []
    length = 0
    for chunk in chunks:
        waiting.append(chunk)
        length += chunk.shape[axis]
        if length >= count:
            *whole, rest = torch.cat(waiting, axis).split([count] * (length // count) + [length % count], axis)
            yield from whole
            # Copied, or it would keep what it is a view of.
            waiting, length = [rest.clone()], rest.shape[axis]
    if length:
        yield torch.cat(waiting, axis)
