"""Sine-cosine positions equal MAE's formula and extend from one grid to a larger one."""

import math

import numpy as np
import pytest
import torch

from maep.models.positions import sincos_positions


def formula(row: int, column: int, width: int) -> np.ndarray:
    """One place, written out: sines then cosines of the column, then of the row."""
    quarter = width // 4
    values = []
    for coordinate in (column, row):
        angles = [coordinate / 10000 ** (i / quarter) for i in range(quarter)]
        values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return np.asarray(values)


def test_equals_the_formula_at_every_place() -> None:
    """Every entry of a 3x5 grid is the written-out sine or cosine."""
    positions = sincos_positions(3, 5, 24).numpy()
    assert positions.shape == (15, 24)
    for row in range(3):
        for column in range(5):
            np.testing.assert_allclose(positions[row * 5 + column], formula(row, column, 24), atol=1e-6)


def test_extends_to_larger_grids() -> None:
    """A larger grid has the smaller one's values at the same places."""
    small, large = sincos_positions(4, 4, 16), sincos_positions(9, 7, 16)
    torch.testing.assert_close(large.view(9, 7, 16)[:4, :4].reshape(16, 16), small, rtol=0, atol=0)


def test_refuses_a_width_that_does_not_split_in_four() -> None:
    """Two axes times sine and cosine need a multiple of 4."""
    with pytest.raises(ValueError, match="18"):
        sincos_positions(2, 2, 18)
