"""Fixed sine-cosine positions of patches, the formula of MAE's official code."""

import torch
from torch import Tensor


def _axis(coordinates: Tensor, width: int) -> Tensor:
    """[T] coordinates to [T, width]: sines, then cosines, of frequencies from 1 down to nearly 1/10000."""
    half = width // 2
    frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=coordinates.device) / half)
    angles = coordinates[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_positions(rows: int, columns: int, width: int, device: torch.device | None = None) -> Tensor:
    """Positions of a grid of patches, row by row.

    width: a multiple of 4; its first half encodes the column, its second half the row, in units of patches.
    Returns float32 [rows * columns, width]. A larger grid extends a smaller one: equal places agree.
    Raises ValueError for another width.
    """
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4")
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64, device=device),
        torch.arange(columns, dtype=torch.float64, device=device),
        indexing="ij",
    )
    halves = [_axis(column.flatten(), width // 2), _axis(row.flatten(), width // 2)]
    return torch.cat(halves, dim=1).float()
