"""Purifying stored pixels: 8 bits in and out, so that of a large image only a part is in floating point at a time."""

from typing import TYPE_CHECKING

import numpy as np

from maep.data.shards import to_float, to_uint8
from maep.runtime.errors import fail

if TYPE_CHECKING:  # callers say what is wrong with their input before torch is imported
    from torch import Tensor

    from maep.purifiers import Purifier

MEGABYTE = 10**6


def purify_pixels(purifier: "Purifier", pixels: np.ndarray) -> np.ndarray:
    """One image of any size purified, uint8 [H, W, 3] to the same.

    On CPUs to the bit what the purifier gives for the image as a batch of one, rounded. It takes the memory of
    `Purifier.bytes_taken` for `Purifier.part_size` beside the two arrays.
    """
    import torch

    def read(rows: slice, columns: slice) -> "Tensor":
        region = torch.from_numpy(np.array(pixels[rows, columns], order="C"))  # a copy, which may be written to
        return to_float(region[None].permute(0, 3, 1, 2).to(purifier.device))

    purified = np.empty_like(pixels, order="C")
    with torch.no_grad():  # and not inference mode: kinds that follow gradients inside could not
        for top, left, images in purifier.purify_parts(read, *pixels.shape[:2]):
            height, width = images.shape[2:]
            levels = to_uint8(images)[0].permute(1, 2, 0).cpu().numpy()
            purified[top : top + height, left : left + width] = levels
    return purified


def check_memory(purifier: "Purifier", height: int, width: int, allowed: int, name: object) -> None:
    """Raise UserError, naming the image and the kind, where purifying takes more than `allowed` bytes."""
    size = purifier.part_size(height, width)
    taken = purifier.bytes_taken(*size)
    if taken > allowed:
        sight = "the whole image" if size == (height, width) else "{1} x {0} pixels".format(*size)
        fail(
            f"{name}: {width} x {height} pixels: a purifier of kind {purifier.kind}, used so, has {sight} in memory at "
            f"a time, about {taken // MEGABYTE} MB; compute.image_memory={allowed} allows {allowed // MEGABYTE} MB: "
            "raise it, or give a smaller image"
        )
