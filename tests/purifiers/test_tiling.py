"""Tiles cover an image of any size, and joining them loses nothing."""

import numpy as np
import pytest
import torch

from maep.purifiers.tiling import Tiling, blend_weights, reflected, seam_error, tile_count


@pytest.mark.parametrize(
    ("length", "overlap", "count"), [(32, 0, 1), (33, 0, 2), (64, 0, 2), (224, 0, 7), (5, 8, 1), (56, 8, 2), (57, 8, 3)]
)
def test_tile_count(length: int, overlap: int, count: int) -> None:
    """As many tiles of 32 as cover the length: 7 along 224 (Sec. 5), 1 for what fits."""
    assert tile_count(length, 32, overlap) == count


@pytest.mark.parametrize(("length", "padded"), [(5, 8), (5, 16), (2, 9), (1, 4), (6, 6)])
def test_reflection_equals_numpys(length: int, padded: int) -> None:
    """Also where the image is smaller than the border."""
    expected = np.pad(np.arange(length), (0, padded - length), mode="reflect")
    assert reflected(length, padded).tolist() == expected.tolist()


@pytest.mark.parametrize("overlap", [0, 1, 4, 8, 13])
def test_blend_weights_add_up_to_one(overlap: int) -> None:
    """At every pixel, however many tiles overlap there; and they are positive."""
    weights = blend_weights(5, 16, overlap)
    total = torch.zeros(16 + 4 * (16 - overlap))
    for tile in range(5):
        start = tile * (16 - overlap)
        total[start : start + 16] += weights[tile]
    torch.testing.assert_close(total, torch.ones_like(total))
    assert bool((weights > 0).all())


def test_blending_is_smooth() -> None:
    """Between neighbours the weight passes over gradually: no step larger than one of a sine square's."""
    weights = blend_weights(2, 16, 8)
    assert weights[0].diff().abs().max() < 0.21
    assert bool((weights[0].diff() <= 1e-6).all())


@pytest.mark.parametrize("overlap", [0, 4, 12])
def test_join_inverts_cut(overlap: int) -> None:
    """An image of 50 x 70 comes back; each tile is the piece of the image at its place."""
    images = torch.rand(2, 3, 50, 70)
    tiling = Tiling(50, 70, 16, overlap)
    tiles = tiling.cut(images)
    assert tiles.shape == (2 * tiling.rows * tiling.columns, 3, 16, 16)
    stride = 16 - overlap
    second_row = tiles[tiling.rows * tiling.columns + tiling.columns + 2]
    assert torch.equal(second_row, images[1, :, stride : stride + 16, 2 * stride : 2 * stride + 16])
    torch.testing.assert_close(tiling.join(tiles), images)


@pytest.mark.parametrize(("overlap", "shift"), [(0, 5), (0, 15), (4, 6), (12, 3)])
def test_shifted_grid_inverts_too(overlap: int, shift: int) -> None:
    """Its first tile begins `shift` pixels above and left of the image, and nothing is lost or moved."""
    images = torch.rand(2, 3, 50, 70)
    tiling = Tiling(50, 70, 16, overlap, shift)
    tiles = tiling.cut(images)
    assert torch.equal(tiles[0, :, shift:, shift:], images[0, :, : 16 - shift, : 16 - shift])
    assert torch.equal(tiles[0, :, shift - 1, shift:], images[0, :, 1, : 16 - shift])
    torch.testing.assert_close(tiling.join(tiles), images)


def test_borders_are_where_tiles_begin_or_end() -> None:
    """Without overlap between whole tiles; with it at both ends of what is shared; shifted with the grid."""

    def borders(*grid: int) -> list[list[int]]:
        return [along.nonzero()[:, 0].tolist() for along in Tiling(*grid).borders()]

    assert borders(64, 40, 16, 0) == [[15, 31, 47], [15, 31]]
    assert borders(64, 40, 16, 0, 5) == [[10, 26, 42, 58], [10, 26]]
    assert borders(40, 16, 16, 4) == [[11, 15, 23, 27], []]


def test_seam_error_is_the_step_at_borders() -> None:
    """A field that rises by 3 at borders, by 1 elsewhere: 3 and 1, for each image, whatever its sign."""
    tiling = Tiling(20, 24, 8, 0)
    rows, columns = tiling.borders()
    down = torch.cat([torch.zeros(1), torch.where(rows, 3.0, 1.0).cumsum(0)])
    right = torch.cat([torch.zeros(1), torch.where(columns, 3.0, 1.0).cumsum(0)])
    field = (down[:, None] - right[None, :]).expand(1, 3, 20, 24)
    across, inside = seam_error(torch.cat([field, -2 * field]), (rows, columns))
    assert across.tolist() == [3.0, 6.0]
    assert inside.tolist() == [1.0, 2.0]
